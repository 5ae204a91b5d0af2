// What the CUDA kernels share: numbers widened and narrowed, sums over a warp and a block, and the
// loop over every element of a matrix.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"

namespace toroid {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The C++ type that stores a plain number, and its value.
template <DType kType>
struct Stored;
template <>
struct Stored<DType::kF32> {
  using Type = float;
};
template <>
struct Stored<DType::kF64> {
  using Type = double;
};
template <>
struct Stored<DType::kBF16> {
  using Type = __nv_bfloat16;
};
template <>
struct Stored<DType::kF16> {
  using Type = __half;
};

__device__ inline float Widen(float x) { return x; }
__device__ inline float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float Widen(__half x) { return __half2float(x); }
__device__ inline float Widen(double x) { return float(x); }

// `to` = `from`, rounded to nearest.
template <typename To, typename From>
__device__ inline To Convert(From from) {
  if constexpr (sizeof(To) == 2) {
    return __float2bfloat16_rn(float(Widen(from)));
  } else if constexpr (sizeof(From) == 2) {
    return To(Widen(from));
  } else {
    return To(from);
  }
}

// kWidth elements in a row, widened and narrowed: one, or eight, which then lie on 16 bytes.
template <int kWidth, typename T>
__device__ inline void LoadWide(const T* from, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = Widen(*from);
  } else {
    alignas(16) T values[kWidth];
#pragma unroll
    for (int i = 0; i < int(kWidth * sizeof(T) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = Widen(values[i]);
  }
}
template <int kWidth, typename T>
__device__ inline void StoreWide(const float (&x)[kWidth], T* to) {
  if constexpr (kWidth == 1) {
    *to = Convert<T>(x[0]);
  } else {
    alignas(16) T values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = Convert<T>(x[i]);
#pragma unroll
    for (int i = 0; i < int(kWidth * sizeof(T) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(values)[i];
    }
  }
}

template <typename T>
__device__ inline T WarpSum(T x) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAllLanes, x, lane);
  return x;
}
__device__ inline float WarpMax(float x) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
  }
  return x;
}

// Over a block of kThreads threads, the same bits in each; `shared` holds a number per warp and may
// be used again at once.
template <int kThreads, typename T, typename Combine>
__device__ inline T BlockCombine(T x, T* shared, Combine combine) {
  if constexpr (kThreads == kWarp) {
    return x;
  } else {
    const int warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0) shared[warp] = x;
    __syncthreads();  // waits for every warp's number
    T total = shared[0];
    for (int i = 1; i < kThreads / kWarp; ++i) total = combine(total, shared[i]);
    __syncthreads();  // waits for every reader, before the numbers are overwritten
    return total;
  }
}
struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
template <int kThreads, typename T>
__device__ inline T BlockSum(T x, T* shared) {
  return BlockCombine<kThreads>(WarpSum(x), shared, Plus());
}
template <int kThreads>
__device__ inline float BlockMax(float x, float* shared) {
  return BlockCombine<kThreads>(WarpMax(x), shared, Largest());
}

template <typename Index, typename Body>
__global__ void ForEachKernel(Index size, Index cols, Body body) {
  const Index step = Index(gridDim.x) * blockDim.x;
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    const Index row = i / cols;
    body(int64_t(row), int64_t(i - row * cols));
  }
}

// Calls body(row, col), a functor for the device, for each element of rows x cols.
template <typename Body>
void ForEach(CudaStream s, int64_t rows, int64_t cols, Body body) {
  const int64_t size = rows * cols;
  if (size == 0) return;
  constexpr int kThreads = 256;
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t blocks = CeilDiv(size, kThreads);
  const unsigned grid = unsigned(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (size < (int64_t{1} << 31)) {  // 32-bit division is several times cheaper
    ForEachKernel<<<grid, kThreads, 0, s>>>(uint32_t(size), uint32_t(cols), body);
  } else {
    ForEachKernel<<<grid, kThreads, 0, s>>>(size, cols, body);
  }
}

// True if rows of such a matrix can be taken eight elements at a time.
template <typename T>
bool TakesEights(const T* data, int64_t stride, int64_t cols) {
  return cols % 8 == 0 &&
         (reinterpret_cast<uintptr_t>(data) | uintptr_t(stride * int64_t{sizeof(T)})) % 16 == 0;
}

template <int kWidth, typename Body>
struct AtWidth {
  Body body;
  __device__ void operator()(int64_t row, int64_t col) const {
    body.template At<kWidth>(row, col * kWidth);
  }
};

// Calls body.At<kWidth>(row, col) for kWidth elements from col on: eight at a time if `eights`,
// else one.
template <typename Body>
void ForEachWide(CudaStream s, bool eights, int64_t rows, int64_t cols, Body body) {
  if (eights) {
    ForEach(s, rows, cols / 8, AtWidth<8, Body>{body});
  } else {
    ForEach(s, rows, cols, AtWidth<1, Body>{body});
  }
}

// Calls body with a number of the type of activations: float, or __nv_bfloat16.
template <typename Body>
void WithActivation(DType type, Body body) {
  if (type == DType::kBF16) {
    body(__nv_bfloat16());
  } else {
    body(float());
  }
}

}  // namespace toroid
