// out = (x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias, by row, variance with 1 / dim.
// Ba et al. 2016, as GPT-2 and GPT-3 use it.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// x, out: [rows, dim], strides in elements. gain, bias: [dim], f32 or f64, of one type; bias may be
// null. out may be x.
template <typename T>
void LayerNorm(ThreadPool& pool, const T* x, int64_t x_stride, int64_t rows, int64_t dim,
               DType gain_type, const void* gain, const void* bias, double epsilon, T* out,
               int64_t out_stride);
// On a CUDA device: out is f32 or bf16.
void LayerNorm(CudaStream s, const float* x, int64_t x_stride, int64_t rows, int64_t dim,
               DType gain_type, const void* gain, const void* bias, double epsilon, DType out_type,
               void* out, int64_t out_stride);

// Backward. With r = 1 / sqrt(variance + epsilon), n = (x - mean) r and dn = gain dout:
//   dx = r (dn - mean(dn) - n mean(dn n))   written; dx may be dout
//   dgain += sum over rows of dout n        added to; null: not wanted
//   dbias += sum over rows of dout          added to; null: not wanted
// dim <= 131072. Any number of threads gives the same bits.
template <typename T>
void LayerNormBackward(ThreadPool& pool, const T* x, int64_t x_stride, int64_t rows, int64_t dim,
                       DType gain_type, const void* gain, double epsilon, const T* dout,
                       int64_t dout_stride, T* dx, int64_t dx_stride, T* dgain, T* dbias);

// workspace: any size above 8 dim bytes, that no other work uses meanwhile.
void LayerNormBackward(CudaStream s, const float* x, int64_t x_stride, int64_t rows, int64_t dim,
                       DType gain_type, const void* gain, double epsilon, const float* dout,
                       int64_t dout_stride, float* dx, int64_t dx_stride, float* dgain,
                       float* dbias, void* workspace, int64_t workspace_bytes);

}  // namespace toroid
