// Loops that apply a function element by element, forward and backward, written once for vectors of
// L floats. Included by row_kernels_loops.h alone.
#pragma once

#include "kernels/vector.h"

namespace toroid {
namespace {

// Calls body(offset, lanes used, vector of x) over n elements, the last vector filled with `fill`.
template <int L, typename Body>
inline void ForVectors(const float* x, int64_t n, float fill, Body body) {
  using N = Lanes<float, L>;
  int64_t i = 0;
  for (; i + L <= n; i += L) body(i, L, N::Load(x + i));
  if (i < n) {
    typename N::V last = N::Set(fill);
    for (int64_t j = 0; i + j < n; ++j) last[j] = x[i + j];
    body(i, n - i, last);
  }
}

template <int L>
void SwiGlu(const float* gate, const float* up, float* out, int64_t n) {
  using N = Lanes<float, L>;
  ForVectors<L>(gate, n, 0.0f, [&](int64_t i, int64_t used, typename N::V x) {
    const typename N::V silu = x / (N::Set(1.0f) + Exp<L>(-x, 0.0f));
    if (used == L) {
      N::Store(out + i, silu * N::Load(up + i));
    } else {
      for (int64_t j = 0; j < used; ++j) out[i + j] = silu[j] * up[i + j];
    }
  });
}

// Vectors of several rows side by side: calls body(in, out) with L elements of each of the `In`
// rows x and stores what it leaves in the `Out` rows. The last vector is filled with zeros.
template <int L, int In, int Out, typename Body>
inline void ForRows(const float* const (&x)[In], float* const (&y)[Out], int64_t n, Body body) {
  using N = Lanes<float, L>;
  typename N::V in[In], out[Out];
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    for (int r = 0; r < In; ++r) in[r] = N::Load(x[r] + i);
    body(in, out);
    for (int r = 0; r < Out; ++r) N::Store(y[r] + i, out[r]);
  }
  if (i == n) return;
  for (int r = 0; r < In; ++r) {
    in[r] = typename N::V{};
    for (int64_t j = 0; i + j < n; ++j) in[r][j] = x[r][i + j];
  }
  body(in, out);
  for (int r = 0; r < Out; ++r) {
    for (int64_t j = 0; i + j < n; ++j) y[r][i + j] = out[r][j];
  }
}

// out = gate s up  ->  dgate = dout up (s + gate s (1 - s)),  dup = dout gate s
template <int L>
void SwiGluBackward(const float* gate, const float* up, const float* dout, float* dgate, float* dup,
                    int64_t n) {
  using N = Lanes<float, L>;
  const typename N::V one = N::Set(1.0f);
  ForRows<L, 3, 2>({gate, up, dout}, {dgate, dup}, n, [&](const auto* in, auto* out) {
    const typename N::V s = one / (one + Exp<L>(-in[0], 0.0f));
    out[0] = in[2] * in[1] * s * (one + in[0] * (one - s));
    out[1] = in[2] * in[0] * s;
  });
}

// 1 / (1 + e^-2u) of GELU. Beyond +-30 it is 0 or 1; `held` there, no square overflows.
template <int L>
inline typename Lanes<float, L>::V GeluSigmoid(typename Lanes<float, L>::V x,
                                               typename Lanes<float, L>::V* held) {
  using N = Lanes<float, L>;
  x = x > N::Set(30.0f) ? N::Set(30.0f) : x;  // a NaN stays one
  x = x < N::Set(-30.0f) ? N::Set(-30.0f) : x;
  *held = x;
  const typename N::V one = N::Set(1.0f);
  const typename N::V u2 = N::Set(1.5957691216f) * x * (one + N::Set(0.044715f) * x * x);
  return one / (one + Exp<L>(-u2, 0.0f));
}

template <int L>
void Gelu(const float* x, float* out, int64_t n) {
  ForRows<L, 1, 1>({x}, {out}, n, [](const auto* in, auto* to) {
    typename Lanes<float, L>::V held;
    to[0] = in[0] * GeluSigmoid<L>(in[0], &held);
  });
}

// out = x s(2u)  ->  dx = dout (s + x s (1 - s) 2 du/dx)
template <int L>
void GeluBackward(const float* x, const float* dout, float* dx, int64_t n) {
  using N = Lanes<float, L>;
  ForRows<L, 2, 1>({x, dout}, {dx}, n, [](const auto* in, auto* out) {
    typename N::V held;
    const typename N::V one = N::Set(1.0f), s = GeluSigmoid<L>(in[0], &held);
    const typename N::V slope = N::Set(1.5957691216f) * (one + N::Set(3 * 0.044715f) * held * held);
    out[0] = in[1] * s * (one + held * (one - s) * slope);
  });
}

template <int L>
void ExpScaled(const float* x, float shift, float factor, float* out, int64_t n) {
  using N = Lanes<float, L>;
  ForRows<L, 1, 1>({x}, {out}, n, [&](const auto* in, auto* to) {
    to[0] = N::Set(factor) * Exp<L>(in[0] - N::Set(shift), 0.0f);
  });
}

}  // namespace
}  // namespace toroid
