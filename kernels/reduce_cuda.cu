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

}  // namespace

void AddSquaredSum(CudaStream s, const float* x, int64_t n, double* sum, void* workspace) {
  if (n == 0) return;
  double* parts = static_cast<double*>(workspace);
  const int64_t wanted = CeilDiv(n, 16 * kThreads);
  const int64_t count = wanted < kMostParts ? wanted : kMostParts;
  SquaresKernel<<<unsigned(count), kThreads, 0, s>>>(x, n, parts);
  AddPartsKernel<<<1, kThreads, 0, s>>>(parts, count, sum);
}

}  // namespace toroid
