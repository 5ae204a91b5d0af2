// Sums over flat arrays, such as the global norm of gradients needs.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/thread_pool.h"

namespace toroid {

// *sum += x_0^2 + ... + x_(n-1)^2, squared and added in double in an order that n alone decides. A
// NaN or an infinity in x shows in the sum.
template <typename T>
void AddSquaredSum(ThreadPool& pool, const T* x, int64_t n, double* sum);

// workspace: 8 KiB that no other work uses meanwhile.
void AddSquaredSum(CudaStream s, const float* x, int64_t n, double* sum, void* workspace);

}  // namespace toroid
