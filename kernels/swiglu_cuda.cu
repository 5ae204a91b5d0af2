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

}  // namespace

void SwiGlu(CudaStream s, const float* gate, int64_t gate_stride, const float* up,
            int64_t up_stride, float* out, int64_t out_stride, int64_t rows, int64_t cols) {
  ForEach(s, rows, cols, SwiGluElement{gate, gate_stride, up, up_stride, out, out_stride});
}

}  // namespace toroid
