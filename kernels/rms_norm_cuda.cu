#include "kernels/rms_norm.h"
#include "kernels/row_sums.cuh"

namespace toroid {

namespace {

template <typename X, typename Out>
struct Forward {
  const X* x;
  int64_t x_stride, rows, inner, dim;
  double epsilon;
  Out* out;
  int64_t out_stride;
};

// A block per row, which is read twice: for its squares, then (from the cache) for the result. Each
// thread writes only what it alone has read, so out may be x.
template <int kThreads, int kWidth, typename X, typename Out, typename Gain>
__global__ void RmsNormKernel(Forward<X, Out> a, const Gain* gain) {
  __shared__ float shared[kThreads / kWarp];
  const int64_t group = blockIdx.x / a.inner, row = blockIdx.x % a.inner;
  const X* from = a.x + group * a.x_stride + row * a.dim;
  Out* to = a.out + group * a.out_stride + row * a.dim;
  const int64_t first = int64_t{threadIdx.x} * kWidth;
  float squares = 0, x[kWidth];
  for (int64_t i = first; i < a.dim; i += kThreads * kWidth) {
    LoadWide(from + i, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) squares += x[j] * x[j];
  }
  const float mean = BlockSum<kThreads>(squares, shared) / float(a.dim);
  const float factor = float(1.0 / sqrt(double(mean) + a.epsilon));
  for (int64_t i = first; i < a.dim; i += kThreads * kWidth) {
    LoadWide(from + i, x);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] *= factor * Widen(gain[i + j]);
    StoreWide(x, to + i);
  }
}

template <typename X, typename Out, typename Gain>
void Launch(CudaStream s, const Forward<X, Out>& a, const Gain* gain) {
  const unsigned rows = unsigned(a.rows);
  const bool eights = a.dim % 8 == 0 && TakesEights(a.x, a.x_stride, a.dim) &&
                      TakesEights(a.out, a.out_stride, a.dim);
  if (a.dim <= 256) {
    RmsNormKernel<kWarp, 1><<<rows, kWarp, 0, s>>>(a, gain);
  } else if (eights) {
    RmsNormKernel<256, 8><<<rows, 256, 0, s>>>(a, gain);
  } else {
    RmsNormKernel<256, 1><<<rows, 256, 0, s>>>(a, gain);
  }
}

// Where the operands of the backward lie, as RmsNorm's.
template <typename X>
struct Backward {
  const X* x;
  int64_t x_stride, rows, inner, dim;
  double epsilon;
  const float* dout;
  int64_t dout_stride;
  bool add_dx;
  float* dx;
  int64_t dx_stride;
};

// A block takes the rows of its part one after the other. A thread owns its columns, and the sums
// of a row are whole before any of its dx is written, so dx may be dout.
template <int kThreads, typename X, typename Gain>
__global__ void RmsNormBackwardKernel(Backward<X> a, const Gain* gain, int64_t rows_of_part,
                                      float* partials) {
  __shared__ float shared[kThreads / kWarp];
  float* dgain = partials + blockIdx.x * a.dim;
  for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) dgain[i] = 0;
  const int64_t begin = blockIdx.x * rows_of_part, end = min(begin + rows_of_part, a.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t group = row / a.inner, inner = row % a.inner * a.dim;
    const X* x = a.x + group * a.x_stride + inner;
    const float* dout = a.dout + group * a.dout_stride + inner;
    float* dx = a.dx + group * a.dx_stride + inner;
    float squares = 0, along = 0;
    for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) {
      const float value = Widen(x[i]);
      squares += value * value;
      along += Widen(gain[i]) * dout[i] * value;
    }
    const float mean = BlockSum<kThreads>(squares, shared) / float(a.dim);
    const float r = float(1.0 / sqrt(double(mean) + a.epsilon));
    along = BlockSum<kThreads>(along, shared) / float(a.dim) * r * r;
    // out = x r gain: x owes r gain dout, r owes -x r^3 mean(gain dout x).
    for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) {
      const float d = dout[i], value = Widen(x[i]);
      dgain[i] += d * value * r;
      const float own = r * (Widen(gain[i]) * d - value * along);
      dx[i] = a.add_dx ? dx[i] + own : own;
    }
  }
}

// The same for rows of up to kChunks * 2048 elements taken eight at a time: a thread keeps its
// columns of a row, and of dgain, in registers.
template <int kChunks, typename X, typename Gain>
__global__ void __launch_bounds__(256)
    WideRmsNormBackwardKernel(Backward<X> a, const Gain* gain, int64_t rows_of_part,
                              float* partials) {
  constexpr int kThreads = 256, kEight = 8;
  __shared__ float shared[kThreads / kWarp];
  float dgain[kChunks][kEight] = {};
  const int64_t begin = blockIdx.x * rows_of_part, end = min(begin + rows_of_part, a.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t group = row / a.inner, inner = row % a.inner * a.dim;
    const X* x_row = a.x + group * a.x_stride + inner;
    const float* dout_row = a.dout + group * a.dout_stride + inner;
    float* dx_row = a.dx + group * a.dx_stride + inner;
    float x[kChunks][kEight], dout[kChunks][kEight];
    float squares = 0, along = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = (int64_t{c} * kThreads + threadIdx.x) * kEight;
      if (i >= a.dim) continue;
      LoadWide(x_row + i, x[c]);
      LoadWide(dout_row + i, dout[c]);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        squares += x[c][j] * x[c][j];
        along += Widen(gain[i + j]) * dout[c][j] * x[c][j];
      }
    }
    const float mean = BlockSum<kThreads>(squares, shared) / float(a.dim);
    const float r = float(1.0 / sqrt(double(mean) + a.epsilon));
    along = BlockSum<kThreads>(along, shared) / float(a.dim) * r * r;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = (int64_t{c} * kThreads + threadIdx.x) * kEight;
      if (i >= a.dim) continue;
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        dgain[c][j] += dout[c][j] * x[c][j] * r;
        x[c][j] = r * (Widen(gain[i + j]) * dout[c][j] - x[c][j] * along);
      }
      if (a.add_dx) {
        LoadWide(dx_row + i, dout[c]);
#pragma unroll
        for (int j = 0; j < kEight; ++j) x[c][j] += dout[c][j];
      }
      StoreWide(x[c], dx_row + i);
    }
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = (int64_t{c} * kThreads + threadIdx.x) * kEight;
    if (i < a.dim) {
      for (int j = 0; j < kEight; ++j) partials[blockIdx.x * a.dim + i + j] = dgain[c][j];
    }
  }
}

template <typename X, typename Gain>
void LaunchBackward(CudaStream s, const Backward<X>& a, const Gain* gain, const SumWorkspace& sums,
                    float* dgain) {
  const bool narrow = a.dim <= 256;
  const Parts parts = CutRows(a.rows, a.dim, narrow ? 8192 : 1024, sums);
  const unsigned blocks = unsigned(parts.count);
  const bool eights = TakesEights(a.x, a.x_stride, a.dim) &&
                      TakesEights(a.dout, a.dout_stride, a.dim) &&
                      TakesEights(a.dx, a.dx_stride, a.dim);
  if (!narrow && eights && a.dim <= 2048) {
    WideRmsNormBackwardKernel<1><<<blocks, 256, 0, s>>>(a, gain, parts.rows, sums.data);
  } else if (!narrow && eights && a.dim <= 4096) {
    WideRmsNormBackwardKernel<2><<<blocks, 256, 0, s>>>(a, gain, parts.rows, sums.data);
  } else if (!narrow && eights && a.dim <= 8192) {
    WideRmsNormBackwardKernel<4><<<blocks, 256, 0, s>>>(a, gain, parts.rows, sums.data);
  } else if (narrow) {
    RmsNormBackwardKernel<kWarp><<<blocks, kWarp, 0, s>>>(a, gain, parts.rows, sums.data);
  } else {
    RmsNormBackwardKernel<256><<<blocks, 256, 0, s>>>(a, gain, parts.rows, sums.data);
  }
  AddPartials(s, sums.data, parts.count, a.dim, a.dim, dgain);
}

}  // namespace

void RmsNorm(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t outer,
             int64_t inner, int64_t dim, DType gain_type, const void* gain, double epsilon,
             DType out_type, void* out, int64_t out_stride) {
  if (outer * inner == 0) return;
  WithActivation(x_type, [&]<typename X>(X) {
    WithActivation(out_type, [&]<typename Out>(Out) {
      const Forward<X, Out> a{
          static_cast<const X*>(x), x_stride,  outer * inner, inner, dim, epsilon,
          static_cast<Out*>(out),   out_stride};
      if (gain_type == DType::kF64) {
        Launch(s, a, static_cast<const double*>(gain));
      } else {
        Launch(s, a, static_cast<const float*>(gain));
      }
    });
  });
}

void RmsNormBackward(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t outer,
                     int64_t inner, int64_t dim, DType gain_type, const void* gain, double epsilon,
                     const float* dout, int64_t dout_stride, bool add_dx, float* dx,
                     int64_t dx_stride, float* dgain, void* workspace, int64_t workspace_bytes) {
  if (outer * inner == 0) return;
  const SumWorkspace sums{static_cast<float*>(workspace), workspace_bytes};
  WithActivation(x_type, [&]<typename X>(X) {
    const Backward<X> a{static_cast<const X*>(x),
                        x_stride,
                        outer * inner,
                        inner,
                        dim,
                        epsilon,
                        dout,
                        dout_stride,
                        add_dx,
                        dx,
                        dx_stride};
    if (gain_type == DType::kF64) {
      LaunchBackward(s, a, static_cast<const double*>(gain), sums, dgain);
    } else {
      LaunchBackward(s, a, static_cast<const float*>(gain), sums, dgain);
    }
  });
}

}  // namespace toroid
