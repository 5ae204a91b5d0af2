// The product q k^T of attention, forward and backward. Included by kernel files alone.
#pragma once

#include "kernels/vector.h"

namespace toroid {
namespace {

// s[j][row] = sum_d k[j][d] q[d][row] for B keys, whose rows lie k_stride apart, and a strip of C L
// rows: broadcasts k as it lies, reads q in lanes, holds B x C sums in registers.
template <typename T, int L, int C, int B>
inline void ScoreKeys(const T* k, int64_t k_stride, int64_t dim, const T* q, T* s) {
  using N = Lanes<T, L>;
  typename N::V sum[B][C] = {};
  for (int64_t d = 0; d < dim; ++d) {
    typename N::V x[C];
    for (int c = 0; c < C; ++c) x[c] = N::LoadOnce(q + d * C * L + c * L);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      const typename N::V y = N::Set(k[b * k_stride + d]);
#pragma GCC unroll 3
      for (int c = 0; c < C; ++c) sum[b][c] += y * x[c];
    }
  }
  for (int b = 0; b < B; ++b) {
    for (int c = 0; c < C; ++c) N::Store(s + b * C * L + c * L, sum[b][c]);
  }
}

}  // namespace
}  // namespace toroid
