// out = silu(gate) * up, silu(x) = x / (1 + e^-x). Shazeer 2020, SwiGLU without the products.
#pragma once

#include <cstdint>

#include "kernels/thread_pool.h"

namespace toroid {

// [rows, cols]; strides in elements. out may be gate.
void SwiGlu(ThreadPool& pool, const float* gate, int64_t gate_stride, const float* up,
            int64_t up_stride, float* out, int64_t out_stride, int64_t rows, int64_t cols);
void SwiGlu(ThreadPool& pool, const double* gate, int64_t gate_stride, const double* up,
            int64_t up_stride, double* out, int64_t out_stride, int64_t rows, int64_t cols);

}  // namespace toroid
