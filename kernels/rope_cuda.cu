#include <algorithm>

#include "kernels/device.cuh"
#include "kernels/rope.h"

namespace toroid {

namespace {

// An angle serves every `teams`-th head of its token: column team * head_dim / 2 + pair.
template <typename E>
struct TurnPair {
  E* x;
  int64_t stride, heads, head_dim, teams;
  const int32_t* positions;
  const double* inv_freq;
  double scale, direction;  // 1, or -1 to turn back
  __device__ void operator()(int64_t token, int64_t col) const {
    const int64_t team = col / (head_dim / 2), pair = col - team * (head_dim / 2);
    double sine, cosine;
    sincos(direction * double(positions[token]) * inv_freq[pair], &sine, &cosine);
    const float s = float(sine * scale), c = float(cosine * scale);
    E* low = x + token * stride + team * head_dim + pair;
    for (int64_t head = team; head < heads; head += teams, low += teams * head_dim) {
      const float a = Widen(low[0]), b = Widen(low[head_dim / 2]);
      low[0] = Convert<E>(a * c - b * s);
      low[head_dim / 2] = Convert<E>(b * c + a * s);
    }
  }
};

template <typename E>
void Turn(CudaStream s, E* x, int64_t stride, int64_t t, int64_t heads, int64_t head_dim,
          const int32_t* positions, const double* inv_freq, double scale, double direction) {
  if (t == 0 || heads == 0) return;
  constexpr int64_t kThreads = 1 << 16;  // of few tokens the heads are split among more threads
  const int64_t teams = std::min(heads, CeilDiv(kThreads, t * head_dim / 2));
  ForEach(s, t, teams * head_dim / 2,
          TurnPair<E>{x, stride, heads, head_dim, teams, positions, inv_freq, scale, direction});
}

}  // namespace

void Rope(CudaStream s, DType type, void* x, int64_t stride, int64_t t, int64_t heads,
          int64_t head_dim, const int32_t* positions, const double* inv_freq, double scale) {
  WithActivation(type, [&]<typename E>(E) {
    Turn(s, static_cast<E*>(x), stride, t, heads, head_dim, positions, inv_freq, scale, 1);
  });
}

void RopeBackward(CudaStream s, DType type, void* dx, int64_t stride, int64_t t, int64_t heads,
                  int64_t head_dim, const int32_t* positions, const double* inv_freq,
                  double scale) {
  WithActivation(type, [&]<typename E>(E) {
    Turn(s, static_cast<E*>(dx), stride, t, heads, head_dim, positions, inv_freq, scale, -1);
  });
}

}  // namespace toroid
