#include "kernels/device.cuh"
#include "kernels/rope.h"

namespace toroid {

namespace {

// An angle serves all heads of its token.
struct TurnPair {
  float* x;
  int64_t stride, heads, head_dim;
  const int32_t* positions;
  const double* inv_freq;
  double scale, direction;  // 1, or -1 to turn back
  __device__ void operator()(int64_t token, int64_t pair) const {
    double sine, cosine;
    sincos(direction * double(positions[token]) * inv_freq[pair], &sine, &cosine);
    const float s = float(sine * scale), c = float(cosine * scale);
    float* low = x + token * stride + pair;
    for (int64_t head = 0; head < heads; ++head, low += head_dim) {
      const float a = low[0], b = low[head_dim / 2];
      low[0] = a * c - b * s;
      low[head_dim / 2] = b * c + a * s;
    }
  }
};

}  // namespace

void Rope(CudaStream s, float* x, int64_t stride, int64_t t, int64_t heads, int64_t head_dim,
          const int32_t* positions, const double* inv_freq, double scale) {
  ForEach(s, t, head_dim / 2, TurnPair{x, stride, heads, head_dim, positions, inv_freq, scale, 1});
}

void RopeBackward(CudaStream s, float* dx, int64_t stride, int64_t t, int64_t heads,
                  int64_t head_dim, const int32_t* positions, const double* inv_freq,
                  double scale) {
  ForEach(s, t, head_dim / 2,
          TurnPair{dx, stride, heads, head_dim, positions, inv_freq, scale, -1});
}

}  // namespace toroid
