// out = silu(gate) * up, silu(x) = x / (1 + e^-x). Shazeer 2020, SwiGLU without the products.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// [rows, cols]; strides in elements. out may be gate.
void SwiGlu(ThreadPool& pool, const float* gate, int64_t gate_stride, const float* up,
            int64_t up_stride, float* out, int64_t out_stride, int64_t rows, int64_t cols);
void SwiGlu(ThreadPool& pool, const double* gate, int64_t gate_stride, const double* up,
            int64_t up_stride, double* out, int64_t out_stride, int64_t rows, int64_t cols);

// On a CUDA device: all of one type, f32 or bf16.
void SwiGlu(CudaStream s, DType type, const void* gate, int64_t gate_stride, const void* up,
            int64_t up_stride, void* out, int64_t out_stride, int64_t rows, int64_t cols);

// Backward: with s = 1 / (1 + e^-gate),
//   dup = dout gate s,   dgate = dout up s (1 + gate (1 - s)).
// dgate may be gate, dup may be up, and either may be dout.
void SwiGluBackward(ThreadPool& pool, const float* gate, int64_t gate_stride, const float* up,
                    int64_t up_stride, const float* dout, int64_t dout_stride, float* dgate,
                    int64_t dgate_stride, float* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols);
void SwiGluBackward(ThreadPool& pool, const double* gate, int64_t gate_stride, const double* up,
                    int64_t up_stride, const double* dout, int64_t dout_stride, double* dgate,
                    int64_t dgate_stride, double* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols);

void SwiGluBackward(CudaStream s, DType type, const void* gate, int64_t gate_stride, const void* up,
                    int64_t up_stride, const void* dout, int64_t dout_stride, void* dgate,
                    int64_t dgate_stride, void* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols);

}  // namespace toroid
