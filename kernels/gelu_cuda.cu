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

template <typename E>
struct GeluElements {
  const E* x;
  int64_t x_stride;
  E* out;
  int64_t out_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float value[kWidth];
    LoadWide(x + row * x_stride + col, value);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) value[i] *= Sigmoid(Held(value[i]));
    StoreWide(value, out + row * out_stride + col);
  }
};

// out = x s(2u)  ->  dx = dout (s + x s (1 - s) 2 du/dx)
template <typename E>
struct GeluBackwardElements {
  const E* x;
  int64_t x_stride;
  const E* dout;
  int64_t dout_stride;
  E* dx;
  int64_t dx_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float value[kWidth], d[kWidth];
    LoadWide(x + row * x_stride + col, value);
    LoadWide(dout + row * dout_stride + col, d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float held = Held(value[i]), s = Sigmoid(held);
      const float slope = kTwoRoot * (1.0f + 3.0f * kCubic * held * held);
      d[i] *= s * (1.0f + held * (1.0f - s) * slope);
    }
    StoreWide(d, dx + row * dx_stride + col);
  }
};

}  // namespace

void Gelu(CudaStream s, DType type, const void* x, int64_t x_stride, void* out, int64_t out_stride,
          int64_t rows, int64_t cols) {
  WithActivation(type, [&]<typename E>(E) {
    const GeluElements<E> body{static_cast<const E*>(x), x_stride, static_cast<E*>(out),
                               out_stride};
    const bool eights =
        TakesEights(body.x, x_stride, cols) && TakesEights(body.out, out_stride, cols);
    ForEachWide(s, eights, rows, cols, body);
  });
}

void GeluBackward(CudaStream s, DType type, const void* x, int64_t x_stride, const void* dout,
                  int64_t dout_stride, void* dx, int64_t dx_stride, int64_t rows, int64_t cols) {
  WithActivation(type, [&]<typename E>(E) {
    const GeluBackwardElements<E> body{static_cast<const E*>(x),    x_stride,
                                       static_cast<const E*>(dout), dout_stride,
                                       static_cast<E*>(dx),         dx_stride};
    const bool eights = TakesEights(body.x, x_stride, cols) &&
                        TakesEights(body.dout, dout_stride, cols) &&
                        TakesEights(body.dx, dx_stride, cols);
    ForEachWide(s, eights, rows, cols, body);
  });
}

}  // namespace toroid
