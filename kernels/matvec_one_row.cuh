// The kernel behind FusedMatVec for one row of x and weights of a plain type: a block's threads
// share rows of w, so that all of a row is on its way at once and the last rows end together.
// Included by kernel files alone.
#pragma once

#include <algorithm>

#include "kernels/matvec_unit.cuh"
#include "kernels/overlap.cuh"

namespace toroid {
namespace {

constexpr int kOneRowThreads = 512;
constexpr int kMostLoads = 8;  // of 16 bytes, that a thread has on their way

// A block per kRows rows of w, one behind the other, with kPair of two products' rows. A thread
// takes every kOneRowThreads-th unit, kAhead of each row at a time. Rows of w from n on repeat the
// last one.
template <DType kType, bool kNorm, int kPair, int kRows, int kAhead>
__global__ void __launch_bounds__(kOneRowThreads) OneRowKernel(FusedMatVecArgs a) {
  using Unit = FusedUnit<kType>;
  constexpr int kLines = kRows * kPair, kWarps = kOneRowThreads / kWarp;
  int64_t group = blockIdx.x;
  int product = 0;
  while (kPair == 1 && group >= CeilDiv(a.products[product].n, kRows)) {
    group -= CeilDiv(a.products[product++].n, kRows);
  }
  const MatMulArgs<float>& p = a.products[product];
  const uint8_t* w[kLines];
#pragma unroll
  for (int i = 0; i < kLines; ++i) w[i] = RowOf<kType, kPair, kRows>(a, p, product, group, i);
  const int units = int(p.k / kUnit), thread = threadIdx.x;

  float sum[kLines] = {}, squares = 0;
  Unit weight[kAhead][kLines];
  for (int first = thread; first - thread < units; first += kOneRowThreads * kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int u = first + j * kOneRowThreads;
      if (u >= units) break;
#pragma unroll
      for (int i = 0; i < kLines; ++i) weight[j][i].template Load<false>(w[i], u);
    }
    if (first == thread) {  // weights are on their way already, x may be still to come
      AwaitEarlierKernels();
      LetNextKernelBegin();
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int u = first + j * kOneRowThreads;
      if (u >= units) break;
      float value[kUnit];
      LoadBeside<kType>(p.x, u, value);
      if constexpr (kNorm) {
        float gain[kUnit];
        LoadBeside<kType>(a.gain, u, gain);
#pragma unroll
        for (int e = 0; e < kUnit; ++e) {
          squares += value[e] * value[e];
          value[e] *= gain[e];
        }
      }
#pragma unroll
      for (int i = 0; i < kLines; ++i) weight[j][i].AddDot(value, 0.0f, sum[i]);
    }
  }

  __shared__ float parts[kLines + 1][kWarps];  // of each warp; the last line: of the squares
  const int lane = thread % kWarp, warp = thread / kWarp;
#pragma unroll
  for (int i = 0; i < kLines; ++i) sum[i] = WarpSum(sum[i]);
  squares = WarpSum(squares);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kLines; ++i) parts[i][warp] = sum[i];
    parts[kLines][warp] = squares;
  }
  __syncthreads();  // waits for every warp's sums
  const auto total_of = [&](int line) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += parts[line][i];
    return total;
  };
  const bool leaves_norm = kNorm && blockIdx.x == 0;  // the first block leaves norm(x)
  const int64_t row = group * kRows + thread;
  const bool has_row = thread < kRows && row < p.n;
  if (!has_row && !leaves_norm) return;
  float factor = 1;
  if constexpr (kNorm) {
    factor = float(1.0 / sqrt(double(total_of(kLines) / float(p.k)) + a.epsilon));
  }
  if (has_row) {
    float total[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      const MatMulArgs<float>& own = a.products[product + i];
      total[i] = total_of(thread * kPair + i) * factor + BiasAt(own, row);
      own.out[row] = total[i];
    }
    if constexpr (kPair == 2) {
      a.hidden[row] = total[0] / (1.0f + expf(-total[0])) * total[1];
    } else {
      if (a.sum != nullptr) a.sum[row] += total[0];
    }
  }
  if (leaves_norm) {
    for (int64_t i = thread; i < p.k; i += kOneRowThreads) {
      a.normed[i] = p.x[i] * (factor * a.gain[i]);
    }
  }
}

template <DType kType, bool kNorm, int kPair, int kAhead>
void LaunchOneRowAhead(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  constexpr int kRows = std::max(1, kMostLoads / (kAhead * FusedUnit<kType>::kLoads * kPair));
  const dim3 grid(unsigned(GroupsOf<kPair>(a, kRows)));
  LaunchOverlapped(overlap, s, grid, dim3(kOneRowThreads),
                   OneRowKernel<kType, kNorm, kPair, kRows, kAhead>, a);
}

// The shorter the rows, the more of them to a block.
template <DType kType, bool kNorm, int kPair>
void LaunchOneRow(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  const int64_t turns = CeilDiv(a.products[0].k / kUnit, kOneRowThreads);
  if (turns == 1) {
    LaunchOneRowAhead<kType, kNorm, kPair, 1>(s, a, overlap);
  } else if (turns == 2) {
    LaunchOneRowAhead<kType, kNorm, kPair, 2>(s, a, overlap);
  } else {
    LaunchOneRowAhead<kType, kNorm, kPair, 4>(s, a, overlap);
  }
}

}  // namespace
}  // namespace toroid
