// Sums over flat arrays, such as the global norm of gradients needs.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// *sum += x_0^2 + ... + x_(n-1)^2, squared and added in double in an order that n alone decides. A
// NaN or an infinity in x shows in the sum.
template <typename T>
void AddSquaredSum(ThreadPool& pool, const T* x, int64_t n, double* sum);

// workspace: 8 KiB that no other work uses meanwhile.
void AddSquaredSum(CudaStream s, const float* x, int64_t n, double* sum, void* workspace);

// out[i] = the largest of parts[0][i], .., parts[count - 1][i], for parts [count, n] one after the
// other; a NaN wins. f32, f64, bf16, i32 or i64.
void MaxOfParts(CudaStream s, DType type, const void* parts, int64_t count, int64_t n, void* out);

}  // namespace toroid
