#include "kernels/device.cuh"
#include "kernels/swiglu.h"

namespace toroid {

namespace {

template <typename E>
struct SwiGluElements {
  const E* gate;
  int64_t gate_stride;
  const E* up;
  int64_t up_stride;
  E* out;
  int64_t out_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float x[kWidth], y[kWidth];
    LoadWide(gate + row * gate_stride + col, x);
    LoadWide(up + row * up_stride + col, y);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] = x[i] / (1.0f + expf(-x[i])) * y[i];
    StoreWide(x, out + row * out_stride + col);
  }
};

// out = gate s up  ->  dgate = dout up (s + gate s (1 - s)),  dup = dout gate s
template <typename E>
struct SwiGluBackwardElements {
  const E* gate;
  int64_t gate_stride;
  const E* up;
  int64_t up_stride;
  const E* dout;
  int64_t dout_stride;
  E* dgate;
  int64_t dgate_stride;
  E* dup;
  int64_t dup_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float x[kWidth], y[kWidth], d[kWidth];
    LoadWide(gate + row * gate_stride + col, x);
    LoadWide(up + row * up_stride + col, y);
    LoadWide(dout + row * dout_stride + col, d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float s = 1.0f / (1.0f + expf(-x[i]));
      y[i] = d[i] * y[i] * s * (1.0f + x[i] * (1.0f - s));
      d[i] = d[i] * x[i] * s;
    }
    StoreWide(y, dgate + row * dgate_stride + col);
    StoreWide(d, dup + row * dup_stride + col);
  }
};

}  // namespace

void SwiGlu(CudaStream s, DType type, const void* gate, int64_t gate_stride, const void* up,
            int64_t up_stride, void* out, int64_t out_stride, int64_t rows, int64_t cols) {
  WithActivation(type, [&]<typename E>(E) {
    const SwiGluElements<E> body{static_cast<const E*>(gate), gate_stride,
                                 static_cast<const E*>(up),   up_stride,
                                 static_cast<E*>(out),        out_stride};
    const bool eights = TakesEights(body.gate, gate_stride, cols) &&
                        TakesEights(body.up, up_stride, cols) &&
                        TakesEights(body.out, out_stride, cols);
    ForEachWide(s, eights, rows, cols, body);
  });
}

void SwiGluBackward(CudaStream s, DType type, const void* gate, int64_t gate_stride, const void* up,
                    int64_t up_stride, const void* dout, int64_t dout_stride, void* dgate,
                    int64_t dgate_stride, void* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols) {
  WithActivation(type, [&]<typename E>(E) {
    const SwiGluBackwardElements<E> body{
        static_cast<const E*>(gate), gate_stride, static_cast<const E*>(up), up_stride,
        static_cast<const E*>(dout), dout_stride, static_cast<E*>(dgate),    dgate_stride,
        static_cast<E*>(dup),        dup_stride};
    const bool eights =
        TakesEights(body.gate, gate_stride, cols) && TakesEights(body.up, up_stride, cols) &&
        TakesEights(body.dout, dout_stride, cols) && TakesEights(body.dgate, dgate_stride, cols) &&
        TakesEights(body.dup, dup_stride, cols);
    ForEachWide(s, eights, rows, cols, body);
  });
}

}  // namespace toroid
