// Rotary position embedding (Su et al. 2021), half-split: with a = position * inv_freq[i],
//   x[i]         <- x[i] cos a - x[i + K/2] sin a
//   x[i + K/2]   <- x[i + K/2] cos a + x[i] sin a,     cos and sin times `scale`.
// Angles are computed in double, so that position 1,000,000 turns as exactly as position 1.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// x: [t, heads, head_dim] in place, stride elements between tokens. inv_freq: [head_dim / 2].
template <typename T>
void Rope(ThreadPool& pool, T* x, int64_t stride, int64_t t, int64_t heads, int64_t head_dim,
          const int32_t* positions, const double* inv_freq, double scale);

// On a CUDA device: x is f32 or bf16.
void Rope(CudaStream s, DType type, void* x, int64_t stride, int64_t t, int64_t heads,
          int64_t head_dim, const int32_t* positions, const double* inv_freq, double scale);

// Backward, in place: the gradient turns back, by -a instead of a (cos and sin times `scale`
// again).
template <typename T>
void RopeBackward(ThreadPool& pool, T* dx, int64_t stride, int64_t t, int64_t heads,
                  int64_t head_dim, const int32_t* positions, const double* inv_freq, double scale);

void RopeBackward(CudaStream s, DType type, void* dx, int64_t stride, int64_t t, int64_t heads,
                  int64_t head_dim, const int32_t* positions, const double* inv_freq, double scale);

}  // namespace toroid
