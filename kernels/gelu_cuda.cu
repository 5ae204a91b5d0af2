#include "kernels/device.cuh"
#include "kernels/gelu.h"

namespace toroid {

namespace {

constexpr float kTwoRoot = 1.5957691216f;  // 2 sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// Beyond +-30 the sigmoid of 2u is 0 or 1; held there, no square overflows. A NaN stays one.
__device__ inline float Held(float x) { return x > 30.0f ? 30.0f : x < -30.0f ? -30.0f : x; }
__device__ inline float Sigmoid(float held) {
  return 1.0f / (1.0f + expf(-kTwoRoot * held * (1.0f + kCubic * held * held)));
}

struct GeluElement {
  const float* x;
  int64_t x_stride;
  float* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const float value = x[row * x_stride + col];
    out[row * out_stride + col] = value * Sigmoid(Held(value));
  }
};

// out = x s(2u)  ->  dx = dout (s + x s (1 - s) 2 du/dx)
struct GeluBackwardElement {
  const float* x;
  int64_t x_stride;
  const float* dout;
  int64_t dout_stride;
  float* dx;
  int64_t dx_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const float held = Held(x[row * x_stride + col]), s = Sigmoid(held);
    const float slope = kTwoRoot * (1.0f + 3.0f * kCubic * held * held);
    dx[row * dx_stride + col] =
        dout[row * dout_stride + col] * s * (1.0f + held * (1.0f - s) * slope);
  }
};

}  // namespace

void Gelu(CudaStream s, const float* x, int64_t x_stride, float* out, int64_t out_stride,
          int64_t rows, int64_t cols) {
  ForEach(s, rows, cols, GeluElement{x, x_stride, out, out_stride});
}

void GeluBackward(CudaStream s, const float* x, int64_t x_stride, const float* dout,
                  int64_t dout_stride, float* dx, int64_t dx_stride, int64_t rows, int64_t cols) {
  ForEach(s, rows, cols, GeluBackwardElement{x, x_stride, dout, dout_stride, dx, dx_stride});
}

}  // namespace toroid
