#include "kernels/layer_norm.h"
#include "kernels/row_sums.cuh"

namespace toroid {

namespace {

constexpr int kThreads = 256;

struct Moments {
  float mean, inverse;  // 1 / sqrt(variance + epsilon)
};

// The variance is taken about the mean: of x = 1000 +- 1 nothing is lost.
__device__ inline Moments RowMoments(const float* x, int64_t dim, double epsilon, float* shared) {
  float sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) sum += x[i];
  const float mean = BlockSum<kThreads>(sum, shared) / float(dim);
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) squares += (x[i] - mean) * (x[i] - mean);
  const float variance = BlockSum<kThreads>(squares, shared) / float(dim);
  return {mean, float(1.0 / sqrt(double(variance) + epsilon))};
}

// A block per row. Each thread writes only what it alone has read, so out may be x.
template <typename Gain, typename Out>
__global__ void LayerNormKernel(const float* x, int64_t x_stride, int64_t dim, const Gain* gain,
                                const Gain* bias, double epsilon, Out* out, int64_t out_stride) {
  __shared__ float shared[kThreads / kWarp];
  const float* from = x + blockIdx.x * x_stride;
  Out* to = out + blockIdx.x * out_stride;
  const Moments m = RowMoments(from, dim, epsilon, shared);
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
    const float shift = bias == nullptr ? 0.0f : Widen(bias[i]);
    to[i] = Convert<Out>((from[i] - m.mean) * m.inverse * Widen(gain[i]) + shift);
  }
}

// A block takes the rows of its part one after the other; partial: dgain, then dbias. A thread owns
// its columns, and the sums of a row are whole before any of its dx is written, so dx may be dout.
template <typename Gain>
__global__ void BackwardKernel(const float* x, int64_t x_stride, int64_t rows, int64_t rows_of_part,
                               int64_t dim, const Gain* gain, double epsilon, const float* dout,
                               int64_t dout_stride, float* dx, int64_t dx_stride, float* partials) {
  __shared__ float shared[kThreads / kWarp];
  float* dgain = partials + blockIdx.x * 2 * dim;
  float* dbias = dgain + dim;
  for (int64_t i = threadIdx.x; i < 2 * dim; i += kThreads) dgain[i] = 0;
  __syncthreads();  // waits for the zeros
  const int64_t begin = blockIdx.x * rows_of_part, end = min(begin + rows_of_part, rows);
  for (int64_t row = begin; row < end; ++row) {
    const float *from = x + row * x_stride, *d = dout + row * dout_stride;
    float* to = dx + row * dx_stride;
    const Moments m = RowMoments(from, dim, epsilon, shared);
    // n = (x - mean) inverse: mean owes -mean(dn), inverse owes -n mean(dn n), both times inverse.
    float along_mean = 0, along_n = 0;
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      const float dn = d[i] * Widen(gain[i]);
      along_mean += dn;
      along_n += dn * ((from[i] - m.mean) * m.inverse);
    }
    along_mean = BlockSum<kThreads>(along_mean, shared) / float(dim);
    along_n = BlockSum<kThreads>(along_n, shared) / float(dim);
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      // out[i] = n gain[i] + bias[i]
      const float n = (from[i] - m.mean) * m.inverse, di = d[i];
      dgain[i] += di * n;
      dbias[i] += di;
      to[i] = m.inverse * (di * Widen(gain[i]) - along_mean - n * along_n);
    }
  }
}

}  // namespace

void LayerNorm(CudaStream s, const float* x, int64_t x_stride, int64_t rows, int64_t dim,
               DType gain_type, const void* gain, const void* bias, double epsilon, DType out_type,
               void* out, int64_t out_stride) {
  if (rows == 0) return;
  const auto launch = [&](const auto* g, const auto* b) {
    WithActivation(out_type, [&]<typename Out>(Out) {
      LayerNormKernel<<<unsigned(rows), kThreads, 0, s>>>(x, x_stride, dim, g, b, epsilon,
                                                          static_cast<Out*>(out), out_stride);
    });
  };
  if (gain_type == DType::kF64) {
    launch(static_cast<const double*>(gain), static_cast<const double*>(bias));
  } else {
    launch(static_cast<const float*>(gain), static_cast<const float*>(bias));
  }
}

void LayerNormBackward(CudaStream s, const float* x, int64_t x_stride, int64_t rows, int64_t dim,
                       DType gain_type, const void* gain, double epsilon, const float* dout,
                       int64_t dout_stride, float* dx, int64_t dx_stride, float* dgain,
                       float* dbias, void* workspace, int64_t workspace_bytes) {
  if (rows == 0) return;
  const SumWorkspace sums{static_cast<float*>(workspace), workspace_bytes};
  const Parts parts = CutRows(rows, 2 * dim, 1024, sums);
  const auto launch = [&](const auto* g) {
    BackwardKernel<<<unsigned(parts.count), kThreads, 0, s>>>(x, x_stride, rows, parts.rows, dim, g,
                                                              epsilon, dout, dout_stride, dx,
                                                              dx_stride, sums.data);
  };
  if (gain_type == DType::kF64) {
    launch(static_cast<const double*>(gain));
  } else {
    launch(static_cast<const float*>(gain));
  }
  AddPartials(s, sums.data, parts.count, 2 * dim, dim, dgain);
  AddPartials(s, sums.data + dim, parts.count, 2 * dim, dim, dbias);
}

}  // namespace toroid
