// out = x / sqrt(mean(x^2) + epsilon) * gain, by row. Zhang & Sennrich 2019, equation 4.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// x, out: `outer` groups of `inner` rows of dim elements. Groups lie stride apart, the rows of a
// group follow each other: [t, dim] is (t, 1), heads in a fused product are (t, h). gain: [dim],
// f32 or f64. out may be x.
template <typename T>
void RmsNorm(ThreadPool& pool, const T* x, int64_t x_stride, int64_t outer, int64_t inner,
             int64_t dim, DType gain_type, const void* gain, double epsilon, T* out,
             int64_t out_stride);

// On a CUDA device: x and out are each f32 or bf16.
void RmsNorm(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t outer,
             int64_t inner, int64_t dim, DType gain_type, const void* gain, double epsilon,
             DType out_type, void* out, int64_t out_stride);

// Backward. With r = 1 / sqrt(mean(x^2) + epsilon):
//   dx = r (gain dout) - x r^3 mean(gain dout x)   written; dx may be dout
//   dgain += sum over rows of dout x r             added to; null: not wanted
// dim <= 262144. Any number of threads gives the same bits.
template <typename T>
void RmsNormBackward(ThreadPool& pool, const T* x, int64_t x_stride, int64_t outer, int64_t inner,
                     int64_t dim, DType gain_type, const void* gain, double epsilon, const T* dout,
                     int64_t dout_stride, T* dx, int64_t dx_stride, T* dgain);

// workspace: any size above 4 dim bytes, that no other work uses meanwhile.
// On a CUDA device: x is f32 or bf16. add_dx: dx is added to, and is not dout.
void RmsNormBackward(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t outer,
                     int64_t inner, int64_t dim, DType gain_type, const void* gain, double epsilon,
                     const float* dout, int64_t dout_stride, bool add_dx, float* dx,
                     int64_t dx_stride, float* dgain, void* workspace, int64_t workspace_bytes);

}  // namespace toroid
