#include "kernels/device.cuh"
#include "kernels/swiglu.h"

namespace toroid {

namespace {

struct SwiGluElement {
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  float* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const float x = gate[row * gate_stride + col];
    out[row * out_stride + col] = x / (1.0f + expf(-x)) * up[row * up_stride + col];
  }
};

// out = gate s up  ->  dgate = dout up (s + gate s (1 - s)),  dup = dout gate s
struct SwiGluBackwardElement {
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  const float* dout;
  int64_t dout_stride;
  float* dgate;
  int64_t dgate_stride;
  float* dup;
  int64_t dup_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const float x = gate[row * gate_stride + col], y = up[row * up_stride + col];
    const float d = dout[row * dout_stride + col], s = 1.0f / (1.0f + expf(-x));
    dgate[row * dgate_stride + col] = d * y * s * (1.0f + x * (1.0f - s));
    dup[row * dup_stride + col] = d * x * s;
  }
};

}  // namespace

void SwiGlu(CudaStream s, const float* gate, int64_t gate_stride, const float* up,
            int64_t up_stride, float* out, int64_t out_stride, int64_t rows, int64_t cols) {
  ForEach(s, rows, cols, SwiGluElement{gate, gate_stride, up, up_stride, out, out_stride});
}

void SwiGluBackward(CudaStream s, const float* gate, int64_t gate_stride, const float* up,
                    int64_t up_stride, const float* dout, int64_t dout_stride, float* dgate,
                    int64_t dgate_stride, float* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols) {
  ForEach(s, rows, cols,
          SwiGluBackwardElement{gate, gate_stride, up, up_stride, dout, dout_stride, dgate,
                                dgate_stride, dup, dup_stride});
}

}  // namespace toroid
