#include "kernels/device.cuh"
#include "kernels/rms_norm.h"

namespace toroid {

namespace {

// A block per row, which is read twice: for its squares, then (from the cache) for the result. Each
// thread writes only what it alone has read, so out may be x.
template <int kThreads, typename Gain>
__global__ void RmsNormKernel(const float* x, int64_t x_stride, int64_t inner, int64_t dim,
                              const Gain* gain, double epsilon, float* out, int64_t out_stride) {
  __shared__ float shared[kThreads / kWarp];
  const int64_t group = blockIdx.x / inner, row = blockIdx.x % inner;
  const float* from = x + group * x_stride + row * dim;
  float* to = out + group * out_stride + row * dim;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) squares += from[i] * from[i];
  const float mean = BlockSum<kThreads>(squares, shared) / float(dim);
  const float factor = float(1.0 / sqrt(double(mean) + epsilon));
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) to[i] = from[i] * factor * Widen(gain[i]);
}

template <typename Gain>
void Launch(CudaStream s, const float* x, int64_t x_stride, int64_t outer, int64_t inner,
            int64_t dim, const Gain* gain, double epsilon, float* out, int64_t out_stride) {
  const unsigned rows = unsigned(outer * inner);
  if (dim <= 256) {
    RmsNormKernel<kWarp>
        <<<rows, kWarp, 0, s>>>(x, x_stride, inner, dim, gain, epsilon, out, out_stride);
  } else {
    RmsNormKernel<256>
        <<<rows, 256, 0, s>>>(x, x_stride, inner, dim, gain, epsilon, out, out_stride);
  }
}

}  // namespace

void RmsNorm(CudaStream s, const float* x, int64_t x_stride, int64_t outer, int64_t inner,
             int64_t dim, DType gain_type, const void* gain, double epsilon, float* out,
             int64_t out_stride) {
  if (outer * inner == 0) return;
  if (gain_type == DType::kF64) {
    Launch(s, x, x_stride, outer, inner, dim, static_cast<const double*>(gain), epsilon, out,
           out_stride);
  } else {
    Launch(s, x, x_stride, outer, inner, dim, static_cast<const float*>(gain), epsilon, out,
           out_stride);
  }
}

}  // namespace toroid
