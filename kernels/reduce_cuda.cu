#include "kernels/device.cuh"
#include "kernels/reduce.h"

namespace toroid {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 1024;

__global__ void SquaresKernel(const float* x, int64_t n, double* parts) {
  __shared__ double shared[kThreads / kWarp];
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    sum += double(x[i]) * double(x[i]);
  }
  sum = BlockSum<kThreads>(sum, shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block.
__global__ void AddPartsKernel(const double* parts, int64_t count, double* sum) {
  __shared__ double shared[kThreads / kWarp];
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += parts[i];
  total = BlockSum<kThreads>(total, shared);
  if (threadIdx.x == 0) *sum += total;
}

__device__ bool Greater(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __bfloat162float(a) > __bfloat162float(b);
}
template <typename T>
__device__ bool Greater(T a, T b) {
  return a > b;
}
__device__ bool IsNan(float x) { return x != x; }
__device__ bool IsNan(double x) { return x != x; }
__device__ bool IsNan(__nv_bfloat16 x) { return IsNan(__bfloat162float(x)); }
template <typename T>
__device__ bool IsNan(T) {
  return false;
}

template <typename T>
__global__ void MaxKernel(const T* parts, int64_t count, int64_t n, T* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  T most = parts[i];
  for (int64_t p = 1; p < count; ++p) {
    const T x = parts[p * n + i];
    if (Greater(x, most) || IsNan(x)) most = x;  // a NaN stays: nothing is greater
  }
  out[i] = most;
}

template <typename T>
void LaunchMax(CudaStream s, const void* parts, int64_t count, int64_t n, void* out) {
  MaxKernel<<<unsigned(CeilDiv(n, kThreads)), kThreads, 0, s>>>(static_cast<const T*>(parts), count,
                                                                n, static_cast<T*>(out));
}

}  // namespace

void MaxOfParts(CudaStream s, DType type, const void* parts, int64_t count, int64_t n, void* out) {
  if (n == 0) return;
  switch (type) {
    case DType::kF32:
      return LaunchMax<float>(s, parts, count, n, out);
    case DType::kF64:
      return LaunchMax<double>(s, parts, count, n, out);
    case DType::kBF16:
      return LaunchMax<__nv_bfloat16>(s, parts, count, n, out);
    case DType::kI32:
      return LaunchMax<int32_t>(s, parts, count, n, out);
    default:
      return LaunchMax<int64_t>(s, parts, count, n, out);
  }
}

void AddSquaredSum(CudaStream s, const float* x, int64_t n, double* sum, void* workspace) {
  if (n == 0) return;
  double* parts = static_cast<double*>(workspace);
  const int64_t wanted = CeilDiv(n, 16 * kThreads);
  const int64_t count = wanted < kMostParts ? wanted : kMostParts;
  SquaresKernel<<<unsigned(count), kThreads, 0, s>>>(x, n, parts);
  AddPartsKernel<<<1, kThreads, 0, s>>>(parts, count, sum);
}

}  // namespace toroid
