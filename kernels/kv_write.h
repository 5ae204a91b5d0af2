// cache row slots[i] = x row i, converted to the cache's type (f32, f64, bf16); a negative slot is
// left out. Slots are distinct.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// x: [t, cols] of f32, f64 or bf16; strides in elements. slots: [t], below the cache's rows.
void KvWrite(ThreadPool& pool, DType x_type, const void* x, int64_t x_stride, int64_t t,
             int64_t cols, const int64_t* slots, DType cache_type, void* cache,
             int64_t cache_stride);

// The same; x: f32 or of the cache's type.
void KvWrite(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t t, int64_t cols,
             const int64_t* slots, DType cache_type, void* cache, int64_t cache_stride);

}  // namespace toroid
