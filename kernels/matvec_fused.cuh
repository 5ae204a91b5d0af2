// The kernel behind FusedMatVec. Included by its files alone, which compile it for different types
// of weights side by side.
#pragma once

#include "kernels/matvec_fused.h"
#include "kernels/overlap.cuh"
#include "kernels/stored_weight.cuh"

namespace toroid {

// For q8_0, q4_0 and q4_1.
void FusedMatVecQuantised(CudaStream s, const FusedMatVecArgs& args, bool overlap);

namespace {

constexpr int kWarpsPerBlock = 4;

// Weights of plain types are read once, by whole lines: they need no place in the L1 cache, where x
// lies.
__device__ inline uint4 LoadOnce(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// Eight stored weights (stored_weight.cuh says which) as they lie. Load fetches those of unit u of
// a row in device memory, or of a part of one in shared memory; AddDot adds their products with x
// to `sum`. x_sum: the sum of x, where kTakesSum says so.
template <DType kType>
struct FusedUnit {
  using E = typename Stored<kType>::Type;
  static constexpr int kLoads = kUnit * sizeof(E) / sizeof(uint4);
  static constexpr bool kTakesSum = false;
  alignas(16) E values[kUnit];
  template <bool kShared>
  __device__ void Load(const uint8_t* row, int u) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint4* from = reinterpret_cast<const uint4*>(row) + int64_t{u} * kLoads + i;
      reinterpret_cast<uint4*>(values)[i] = kShared ? *from : LoadOnce(from);
    }
  }
  __device__ void AddDot(const float (&x)[kUnit], float, float& sum) const {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) sum += Widen(values[e]) * x[e];
  }
};

__device__ inline uint32_t Word(const uint8_t* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}
__device__ inline uint32_t Half(const uint8_t* from) {
  return *reinterpret_cast<const uint16_t*>(from);
}

// Sum of (byte i of `bytes` - kZero) x[i]. A byte b under the exponent of 2^23 is the float 2^23 +
// b: no conversion is needed, and the difference is exact.
template <int kZero>
__device__ inline float DotOfBytes(uint32_t bytes, const float* x) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = __byte_perm(bytes, 0x4B000000u, 0x7440u + unsigned(i));
    sum += (__uint_as_float(bits) - float((1 << 23) + kZero)) * x[i];
  }
  return sum;
}
constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;

// Blocks of 34 bytes begin at even addresses: the eight numbers of a unit lie in two words or
// across three. REQUIRES rows at multiples of 4 bytes, hence of an even number of blocks, so that
// the last word of three is still the row's.
template <>
struct FusedUnit<DType::kQ8_0> {
  static constexpr bool kTakesSum = false;
  uint32_t scale, first, second, third;
  template <bool kShared>
  __device__ void Load(const uint8_t* row, int u) {
    const int block = u / 4, odd = block % 2;
    const uint8_t* numbers = row + int64_t{block} * 34 + 2 + u % 4 * 8;
    const uint8_t* words = numbers - 2 * (1 - odd);
    scale = Half(row + int64_t{block} * 34) | uint32_t(odd) << 16;
    first = Word(words), second = Word(words + 4);
    third = Word(words + 8 - 4 * odd);
  }
  __device__ void AddDot(const float (&x)[kUnit], float, float& sum) const {
    const uint32_t shift = scale >> 16 != 0 ? 0 : 16, signs = 0x80808080u;
    const uint32_t low = __funnelshift_r(first, second, shift);
    const uint32_t high = __funnelshift_r(second, third, shift);
    const float dot = DotOfBytes<128>(low ^ signs, x) + DotOfBytes<128>(high ^ signs, x + 4);
    sum += HalfBits(scale & 0xffffu) * dot;
  }
};

// As q8_0, of blocks of 18 bytes and four bytes to a unit.
template <>
struct FusedUnit<DType::kQ4_0> {
  static constexpr bool kTakesSum = false;
  uint32_t scale, first, second;
  template <bool kShared>
  __device__ void Load(const uint8_t* row, int u) {
    const int block = u / 4, odd = block % 2;
    const uint8_t* nibbles = row + int64_t{block} * 18 + 2 + u % 4 * 4;
    const uint8_t* words = nibbles - 2 * (1 - odd);
    scale = Half(row + int64_t{block} * 18) | uint32_t(odd) << 16;
    first = Word(words);
    second = Word(words + 4 - 4 * odd);
  }
  __device__ void AddDot(const float (&x)[kUnit], float, float& sum) const {
    const uint32_t bytes = __funnelshift_r(first, second, scale >> 16 != 0 ? 0 : 16);
    const float dot =
        DotOfBytes<8>(bytes & kLowNibbles, x) + DotOfBytes<8>((bytes >> 4) & kLowNibbles, x + 4);
    sum += HalfBits(scale & 0xffffu) * dot;
  }
};

// d q + m = d (q - 8) + (m + 8 d): so that little cancels.
template <>
struct FusedUnit<DType::kQ4_1> {
  static constexpr bool kTakesSum = true;
  uint32_t scales, nibbles;
  template <bool kShared>
  __device__ void Load(const uint8_t* row, int u) {
    const uint8_t* block = row + int64_t{u / 4} * 20;
    scales = Word(block);
    nibbles = Word(block + 4 + u % 4 * 4);
  }
  __device__ void AddDot(const float (&x)[kUnit], float x_sum, float& sum) const {
    const float d = HalfBits(scales & 0xffffu), m = HalfBits(scales >> 16);
    const float dot = DotOfBytes<8>(nibbles & kLowNibbles, x) +
                      DotOfBytes<8>((nibbles >> 4) & kLowNibbles, x + 4);
    sum += d * dot + (m + 8.0f * d) * x_sum;
  }
};

// The eight elements of x beside unit u.
template <DType kType>
__device__ inline void LoadBeside(const float* x, int u, float (&out)[kUnit]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = int(UnitHalf<kType>(u, half));
    const float4 four = *reinterpret_cast<const float4*>(x + first);
    out[half * 4] = four.x, out[half * 4 + 1] = four.y;
    out[half * 4 + 2] = four.z, out[half * 4 + 3] = four.w;
  }
}

__device__ inline float BiasAt(const MatMulArgs<float>& a, int64_t i) {
  if (a.bias == nullptr) return 0.0f;
  return a.bias_type == DType::kF64 ? float(static_cast<const double*>(a.bias)[i])
                                    : static_cast<const float*>(a.bias)[i];
}

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
  for (int i = 0; i < kLines; ++i) {
    const MatMulArgs<float>& own = a.products[product + i % kPair];
    const int64_t row = group * kRows + i / kPair;
    w[i] = static_cast<const uint8_t*>(own.w) +
           (row < p.n ? row : p.n - 1) * RowBytes(kType, own.w_stride);
  }
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
    constexpr int kAhead = 4;        // units that are fetched together
    constexpr bool kTwice = M == 1;  // the next ones before these are used
    Unit weight[kAhead][kLines];
    [[maybe_unused]] Unit next[kAhead][kLines];
    const auto fetch = [&](int first, Unit(&to)[kAhead][kLines]) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
#pragma unroll
        for (int i = 0; i < kLines; ++i) {
          if (first + j * kWarp < units) to[j][i].template Load<false>(w[i], first + j * kWarp);
        }
      }
    };
    if constexpr (kTwice) fetch(lane, next);
    for (int first = lane; first - lane < units; first += kWarp * kAhead) {
      if constexpr (kTwice) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
#pragma unroll
          for (int i = 0; i < kLines; ++i) weight[j][i] = next[j][i];
        }
        fetch(first + kWarp * kAhead, next);
      } else {
        fetch(first, weight);
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
  int64_t groups = CeilDiv(a.products[0].n, kRows);
  for (int i = 1; i < a.count && kPair == 1; ++i) groups += CeilDiv(a.products[i].n, kRows);
  const dim3 grid(unsigned(CeilDiv(groups, kWarpsPerBlock))), block(kWarp, kWarpsPerBlock);
  LaunchOverlapped(overlap, s, grid, block, FusedKernel<kType, M, kNorm, kPair, kRows, kStaged>, a);
}

// One row of x, whose reading and norm cost as much as a row of quantised weights: several rows of
// w share them where that leaves warps enough for the whole device.
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
    LaunchRows<kType, 1, kNorm, kPair, 1, false>(s, a, overlap);
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
