// Sums over rows on a CUDA device, in an order that shapes alone decide: a block adds the rows of
// one part into a partial row of the workspace, and the partial rows are added in order.
#pragma once

#include "kernels/device.cuh"

namespace toroid {

// Where the backward of an op keeps partial sums meanwhile.
struct SumWorkspace {
  float* data;
  int64_t bytes;
};

namespace {

// How `rows` rows are cut for sums of `cols` columns.
struct Parts {
  int64_t count, rows;  // parts, rows of each
};
inline Parts CutRows(int64_t rows, int64_t cols, int64_t most, const SumWorkspace& workspace) {
  constexpr int64_t kLeastRows = 16;
  const int64_t fit = workspace.bytes / (cols * int64_t{sizeof(float)});
  int64_t count = CeilDiv(rows, kLeastRows);
  if (count > most) count = most;
  if (count > fit) count = fit;
  const int64_t each = CeilDiv(rows, count);
  return {CeilDiv(rows, each), each};
}

// 32 columns to a block, 32 threads to a column, whose sums meet in shared memory.
__global__ void AddPartialsKernel(const float* partials, int64_t parts, int64_t stride,
                                  int64_t cols, float* out) {
  __shared__ double sums[kWarp][kWarp + 1];
  const int64_t col = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  double sum = 0;
  for (int64_t part = threadIdx.y; col < cols && part < parts; part += kWarp) {
    sum += double(partials[part * stride + col]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // waits for all sums of the column
  if (threadIdx.y != 0 || col >= cols) return;
  for (int i = 1; i < kWarp; ++i) sum += sums[i][threadIdx.x];
  out[col] += float(sum);
}

// out [cols] += the sum of `parts` partial rows, `stride` elements apart. Null: not wanted.
inline void AddPartials(CudaStream s, const float* partials, int64_t parts, int64_t stride,
                        int64_t cols, float* out) {
  if (out == nullptr || cols == 0) return;
  AddPartialsKernel<<<unsigned(CeilDiv(cols, kWarp)), dim3(kWarp, kWarp), 0, s>>>(
      partials, parts, stride, cols, out);
}

}  // namespace
}  // namespace toroid
