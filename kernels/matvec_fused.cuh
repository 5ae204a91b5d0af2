// The kernel behind FusedMatVec. Included by its files alone, which compile it for different types
// of weights side by side.
#pragma once

#include "kernels/matvec_one_row.cuh"

namespace toroid {

// For q8_0, q4_0 and q4_1.
void FusedMatVecQuantised(CudaStream s, const FusedMatVecArgs& args, bool overlap);

namespace {

constexpr int kWarpsPerBlock = 4;

// Pieces of rows of quantised weights on their way through a warp's own shared memory, as they lie:
// fetched from memory by whole lines, 16 bytes a lane, and read from there at any address. A piece
// is kTiles times what 32 lanes take at once; kPieces are there or on their way.
template <DType kType, int kLines>
struct StagedRows {
  static constexpr int kTile = int(RowBytes(kType, kWarp* kUnit));
  static constexpr int kTiles = kLines == 1 ? 4 : 2, kPieces = 4;
  static constexpr int kBytes = kTiles * kTile;
  static_assert(kTile % 16 == 0);
  alignas(16) uint8_t bytes[kPieces][kLines][kBytes];

  // Piece `index` of each row, as far as the row reaches; a group of copies of its own.
  __device__ void Fetch(const uint8_t* (&w)[kLines], int64_t row_bytes, int index, int lane) {
    const int64_t begin = int64_t{index} * kBytes;
    for (int at = lane * 16; at < kBytes && begin + at < row_bytes; at += kWarp * 16) {
#pragma unroll
      for (int i = 0; i < kLines; ++i) {
        const unsigned to = unsigned(__cvta_generic_to_shared(&bytes[index % kPieces][i][at]));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(w[i] + begin + at)
                     : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  // Waits until all but the newest kPieces - 2 groups have arrived, for all lanes.
  __device__ void Await() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPieces - 2) : "memory");
    __syncwarp();
  }
};

// A warp per kRows rows of w, one behind the other, which share what is done to x; with kPair of
// two products' rows. A lane takes every 32nd unit. Rows of x from m on, and rows of w from n on,
// repeat the last one. kStaged: through StagedRows; rows of w on 16 bytes.
template <DType kType, int M, bool kNorm, int kPair, int kRows, bool kStaged>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock) FusedKernel(FusedMatVecArgs a) {
  using Unit = FusedUnit<kType>;
  constexpr int kLines = kRows * kPair;  // rows of w
  const int64_t first_group = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.y;
  int64_t group = first_group;
  int product = 0;
  if (kPair == 1) {
    while (product < a.count && group >= CeilDiv(a.products[product].n, kRows)) {
      group -= CeilDiv(a.products[product++].n, kRows);
    }
  } else if (group >= CeilDiv(a.products[0].n, kRows)) {
    product = a.count;
  }
  if (product == a.count) return AwaitEarlierKernels();
  const MatMulArgs<float>& p = a.products[product];
  const uint8_t* w[kLines];
#pragma unroll
  for (int i = 0; i < kLines; ++i) w[i] = RowOf<kType, kPair, kRows>(a, p, product, group, i);
  const float* x[M];
#pragma unroll
  for (int r = 0; r < M; ++r) x[r] = p.x + (r < p.m ? r : p.m - 1) * p.x_stride;
  const int units = int(p.k / kUnit), lane = threadIdx.x;

  float sum[kLines][M] = {}, squares[M] = {};
  const auto multiply = [&](const Unit(&weight)[kLines], int u) {
#pragma unroll
    for (int r = 0; r < M; ++r) {
      float value[kUnit], value_sum = 0;
      LoadBeside<kType>(x[r], u, value);
      if constexpr (kNorm) {
        float gain[kUnit];
        LoadBeside<kType>(a.gain, u, gain);
#pragma unroll
        for (int e = 0; e < kUnit; ++e) {
          squares[r] += value[e] * value[e];
          value[e] *= gain[e];
        }
      }
      if constexpr (Unit::kTakesSum) {
#pragma unroll
        for (int e = 0; e < kUnit; ++e) value_sum += value[e];
      }
#pragma unroll
      for (int i = 0; i < kLines; ++i) weight[i].AddDot(value, value_sum, sum[i][r]);
    }
  };
  if constexpr (kStaged) {
    using Staged = StagedRows<kType, kLines>;
    __shared__ Staged shared[kWarpsPerBlock];
    Staged& staged = shared[threadIdx.y];
    const int64_t row_bytes = RowBytes(kType, p.k);
    const int pieces = int(CeilDiv(row_bytes, Staged::kBytes));
    for (int i = 0; i < Staged::kPieces - 1; ++i) staged.Fetch(w, row_bytes, i, lane);
    AwaitEarlierKernels();  // weights are on their way already, x may be still to come
    LetNextKernelBegin();
    for (int piece = 0; piece < pieces; ++piece) {
      staged.Await();
      // In the place of the piece before, which all lanes have read by now.
      staged.Fetch(w, row_bytes, piece + Staged::kPieces - 1, lane);
#pragma unroll
      for (int t = 0; t < Staged::kTiles; ++t) {
        const int u = (piece * Staged::kTiles + t) * kWarp + lane;
        if (u >= units) break;
        Unit weight[kLines];
#pragma unroll
        for (int i = 0; i < kLines; ++i) {
          weight[i].template Load<true>(staged.bytes[piece % Staged::kPieces][i], t * kWarp + lane);
        }
        multiply(weight, u);
      }
    }
  } else {
    constexpr int kAhead = 4;  // units that are fetched together
    Unit weight[kAhead][kLines];
    for (int first = lane; first - lane < units; first += kWarp * kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
#pragma unroll
        for (int i = 0; i < kLines; ++i) {
          if (first + j * kWarp < units) {
            weight[j][i].template Load<false>(w[i], first + j * kWarp);
          }
        }
      }
      if (first == lane) {  // weights are there already, x may be still to come
        AwaitEarlierKernels();
        LetNextKernelBegin();
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (first + j * kWarp >= units) break;
        multiply(weight[j], first + j * kWarp);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < M; ++r) {
    if (r >= p.m) break;
    float factor = 1;
    if constexpr (kNorm) {
      const float mean = WarpSum(squares[r]) / float(p.k);
      factor = float(1.0 / sqrt(double(mean) + a.epsilon));
    }
#pragma unroll
    for (int b = 0; b < kRows; ++b) {
      const int64_t row = group * kRows + b;
      if (row >= p.n) break;
      float total[kPair];
#pragma unroll
      for (int i = 0; i < kPair; ++i) {
        const MatMulArgs<float>& own = a.products[product + i];
        total[i] = WarpSum(sum[b * kPair + i][r]) * factor + BiasAt(own, row);
        if (lane == 0) own.out[r * own.out_stride + row] = total[i];
      }
      if constexpr (kPair == 2) {
        const float s = 1.0f / (1.0f + expf(-total[0]));
        if (lane == 0) a.hidden[r * a.hidden_stride + row] = total[0] * s * total[1];
      } else {
        if (lane == 0 && a.sum != nullptr) a.sum[r * a.sum_stride + row] += total[0];
      }
    }
    if constexpr (kNorm) {  // the first warp of all leaves norm(x)
      for (int64_t i = lane; i < p.k && first_group == 0; i += kWarp) {
        a.normed[r * a.normed_stride + i] = x[r][i] * (factor * a.gain[i]);
      }
    }
  }
}

template <DType kType, int M, bool kNorm, int kPair, int kRows, bool kStaged>
void LaunchRows(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  const int64_t groups = GroupsOf<kPair>(a, kRows);
  const dim3 grid(unsigned(CeilDiv(groups, kWarpsPerBlock))), block(kWarp, kWarpsPerBlock);
  LaunchOverlapped(overlap, s, grid, block, FusedKernel<kType, M, kNorm, kPair, kRows, kStaged>, a);
}

// One row of x. Its reading and norm cost as much as a row of quantised weights: several rows of w
// share them where that leaves warps enough for the whole device.
template <DType kType, bool kNorm, int kPair>
void LaunchOne(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  if constexpr (IsQuantised(kType)) {
    bool staged = true;
    int64_t lines = 0;
    for (int i = 0; i < a.count; ++i) {
      const MatMulArgs<float>& p = a.products[i];
      staged &= (reinterpret_cast<uintptr_t>(p.w) | uintptr_t(RowBytes(kType, p.k))) % 16 == 0;
      lines += p.n;
    }
    constexpr int64_t kWarps = 1536;  // a dozen to a multiprocessor
    if (!staged) return LaunchRows<kType, 1, kNorm, kPair, 1, false>(s, a, overlap);
    if (lines >= 4 * kWarps) {
      return LaunchRows<kType, 1, kNorm, kPair, 4 / kPair, true>(s, a, overlap);
    }
    if (kPair == 1 && lines >= 2 * kWarps) {
      return LaunchRows<kType, 1, kNorm, kPair, 2, true>(s, a, overlap);
    }
    LaunchRows<kType, 1, kNorm, kPair, 1, true>(s, a, overlap);
  } else {
    LaunchOneRow<kType, kNorm, kPair>(s, a, overlap);
  }
}

template <DType kType, bool kNorm, int kPair>
void Launch(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  const int64_t m = a.products[0].m;
  if (m == 1) {
    LaunchOne<kType, kNorm, kPair>(s, a, overlap);
  } else if (m == 2) {
    LaunchRows<kType, 2, kNorm, kPair, 1, false>(s, a, overlap);
  } else if (m <= 4) {
    LaunchRows<kType, 4, kNorm, kPair, 1, false>(s, a, overlap);
  } else {
    LaunchRows<kType, 8, kNorm, kPair, 1, false>(s, a, overlap);
  }
}

template <DType kType>
void LaunchOf(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  if (a.gain != nullptr) {
    a.hidden != nullptr ? Launch<kType, true, 2>(s, a, overlap)
                        : Launch<kType, true, 1>(s, a, overlap);
  } else {
    a.hidden != nullptr ? Launch<kType, false, 2>(s, a, overlap)
                        : Launch<kType, false, 1>(s, a, overlap);
  }
}

}  // namespace
}  // namespace toroid
