#include "kernels/rms_norm.h"
#include "kernels/row_sums.cuh"

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

// Where the operands of the backward lie, as RmsNorm's.
struct Backward {
  const float* x;
  int64_t x_stride, rows, inner, dim;
  double epsilon;
  const float* dout;
  int64_t dout_stride;
  float* dx;
  int64_t dx_stride;
};

// A block takes the rows of its part one after the other. A thread owns its columns, and the sums
// of a row are whole before any of its dx is written, so dx may be dout.
template <int kThreads, typename Gain>
__global__ void RmsNormBackwardKernel(Backward a, const Gain* gain, int64_t rows_of_part,
                                      float* partials) {
  __shared__ float shared[kThreads / kWarp];
  float* dgain = partials + blockIdx.x * a.dim;
  for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) dgain[i] = 0;
  const int64_t begin = blockIdx.x * rows_of_part, end = min(begin + rows_of_part, a.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t group = row / a.inner, inner = row % a.inner * a.dim;
    const float* x = a.x + group * a.x_stride + inner;
    const float* dout = a.dout + group * a.dout_stride + inner;
    float* dx = a.dx + group * a.dx_stride + inner;
    float squares = 0, along = 0;
    for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) {
      squares += x[i] * x[i];
      along += Widen(gain[i]) * dout[i] * x[i];
    }
    const float mean = BlockSum<kThreads>(squares, shared) / float(a.dim);
    const float r = float(1.0 / sqrt(double(mean) + a.epsilon));
    along = BlockSum<kThreads>(along, shared) / float(a.dim) * r * r;
    // out = x r gain: x owes r gain dout, r owes -x r^3 mean(gain dout x).
    for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) {
      const float d = dout[i];
      dgain[i] += d * x[i] * r;
      dx[i] = r * (Widen(gain[i]) * d - x[i] * along);
    }
  }
}

template <typename Gain>
void LaunchBackward(CudaStream s, const Backward& a, const Gain* gain, const SumWorkspace& sums,
                    float* dgain) {
  const bool narrow = a.dim <= 256;
  const Parts parts = CutRows(a.rows, a.dim, narrow ? 8192 : 1024, sums);
  const unsigned blocks = unsigned(parts.count);
  if (narrow) {
    RmsNormBackwardKernel<kWarp><<<blocks, kWarp, 0, s>>>(a, gain, parts.rows, sums.data);
  } else {
    RmsNormBackwardKernel<256><<<blocks, 256, 0, s>>>(a, gain, parts.rows, sums.data);
  }
  AddPartials(s, sums.data, parts.count, a.dim, a.dim, dgain);
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

void RmsNormBackward(CudaStream s, const float* x, int64_t x_stride, int64_t outer, int64_t inner,
                     int64_t dim, DType gain_type, const void* gain, double epsilon,
                     const float* dout, int64_t dout_stride, float* dx, int64_t dx_stride,
                     float* dgain, void* workspace, int64_t workspace_bytes) {
  if (outer * inner == 0) return;
  const SumWorkspace sums{static_cast<float*>(workspace), workspace_bytes};
  const Backward a{x,       x_stride, outer * inner, inner, dim,
                   epsilon, dout,     dout_stride,   dx,    dx_stride};
  if (gain_type == DType::kF64) {
    LaunchBackward(s, a, static_cast<const double*>(gain), sums, dgain);
  } else {
    LaunchBackward(s, a, static_cast<const float*>(gain), sums, dgain);
  }
}

}  // namespace toroid
