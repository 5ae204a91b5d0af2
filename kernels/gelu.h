// out = x / 2 (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3): the tanh form of GELU (Hendrycks &
// Gimpel 2016), which GPT-2 and GPT-3 use. As 1 + tanh u = 2 / (1 + e^-2u), it is x / (1 + e^-2u).
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// [rows, cols]; strides in elements. out may be x.
void Gelu(ThreadPool& pool, const float* x, int64_t x_stride, float* out, int64_t out_stride,
          int64_t rows, int64_t cols);
void Gelu(ThreadPool& pool, const double* x, int64_t x_stride, double* out, int64_t out_stride,
          int64_t rows, int64_t cols);

// On a CUDA device: all of one type, f32 or bf16.
void Gelu(CudaStream s, DType type, const void* x, int64_t x_stride, void* out, int64_t out_stride,
          int64_t rows, int64_t cols);

// Backward: with s = 1 / (1 + e^-2u), dx = dout s (1 + x (1 - s) 2 du/dx),
// du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2). dx may be x or dout.
void GeluBackward(ThreadPool& pool, const float* x, int64_t x_stride, const float* dout,
                  int64_t dout_stride, float* dx, int64_t dx_stride, int64_t rows, int64_t cols);
void GeluBackward(ThreadPool& pool, const double* x, int64_t x_stride, const double* dout,
                  int64_t dout_stride, double* dx, int64_t dx_stride, int64_t rows, int64_t cols);

void GeluBackward(CudaStream s, DType type, const void* x, int64_t x_stride, const void* dout,
                  int64_t dout_stride, void* dx, int64_t dx_stride, int64_t rows, int64_t cols);

}  // namespace toroid
