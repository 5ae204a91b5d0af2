#include "kernels/matvec_fused.h"
#include "kernels/overlap.cuh"

namespace toroid {

namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kUnit = 8;   // weights that a lane takes at once
constexpr int kAhead = 4;  // such units that are fetched before one of them is used

// Weights are read once: they need no place in the L1 cache, where x lies.
__device__ inline uint4 LoadOnce(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// Eight stored weights as they lie.
template <typename E>
struct Unit {
  static constexpr int kLoads = kUnit * sizeof(E) / sizeof(uint4);
  alignas(16) E values[kUnit];
  __device__ void Load(const E* from) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      reinterpret_cast<uint4*>(values)[i] = LoadOnce(reinterpret_cast<const uint4*>(from) + i);
    }
  }
};

__device__ inline float BiasAt(const MatMulArgs<float>& a, int64_t i) {
  if (a.bias == nullptr) return 0.0f;
  return a.bias_type == DType::kF64 ? float(static_cast<const double*>(a.bias)[i])
                                    : static_cast<const float*>(a.bias)[i];
}

// A warp per row of w; with kPair per row of both. A lane takes every 32nd unit. Rows of x from m
// on repeat the last one.
template <typename E, int M, bool kNorm, int kPair>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock) FusedKernel(FusedMatVecArgs a) {
  const int64_t first_row = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.y;
  int64_t row = first_row;
  int product = 0;
  if (kPair == 1) {
    while (product < a.count && row >= a.products[product].n) row -= a.products[product++].n;
  } else if (row >= a.products[0].n) {
    product = a.count;
  }
  if (product == a.count) return AwaitEarlierKernels();
  const MatMulArgs<float>& p = a.products[product];
  const E* w[kPair];
#pragma unroll
  for (int i = 0; i < kPair; ++i) {
    w[i] =
        static_cast<const E*>(a.products[product + i].w) + row * a.products[product + i].w_stride;
  }
  const float* x[M];
#pragma unroll
  for (int r = 0; r < M; ++r) x[r] = p.x + (r < p.m ? r : p.m - 1) * p.x_stride;
  const int units = int(p.k / kUnit), lane = threadIdx.x;

  float sum[kPair][M] = {}, squares[M] = {};
  for (int first = lane; first - lane < units; first += kWarp * kAhead) {
    Unit<E> weight[kAhead][kPair];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
#pragma unroll
      for (int i = 0; i < kPair; ++i) {
        const int u = first + j * kWarp;
        if (u < units) weight[j][i].Load(w[i] + int64_t{u} * kUnit);
      }
    }
    if (first == lane) {  // weights are there already, x may be still to come
      AwaitEarlierKernels();
      LetNextKernelBegin();
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int u = first + j * kWarp;
      if (u >= units) break;
#pragma unroll
      for (int r = 0; r < M; ++r) {
        float value[kUnit];
        LoadWide(x[r] + u * kUnit, value);
        if constexpr (kNorm) {
          float gain[kUnit];
          LoadWide(a.gain + u * kUnit, gain);
#pragma unroll
          for (int e = 0; e < kUnit; ++e) {
            squares[r] += value[e] * value[e];
            value[e] *= gain[e];
          }
        }
#pragma unroll
        for (int i = 0; i < kPair; ++i) {
#pragma unroll
          for (int e = 0; e < kUnit; ++e) sum[i][r] += Widen(weight[j][i].values[e]) * value[e];
        }
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
    float total[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      const MatMulArgs<float>& own = a.products[product + i];
      total[i] = WarpSum(sum[i][r]) * factor + BiasAt(own, row);
      if (lane == 0) own.out[r * own.out_stride + row] = total[i];
    }
    if constexpr (kPair == 2) {
      const float s = 1.0f / (1.0f + expf(-total[0]));
      if (lane == 0) a.hidden[r * a.hidden_stride + row] = total[0] * s * total[1];
    } else {
      if (lane == 0 && a.sum != nullptr) a.sum[r * a.sum_stride + row] += total[0];
    }
    if constexpr (kNorm) {  // the first warp of all leaves norm(x)
      for (int64_t i = lane; i < p.k && first_row == 0; i += kWarp) {
        a.normed[r * a.normed_stride + i] = x[r][i] * (factor * a.gain[i]);
      }
    }
  }
}

template <typename E, bool kNorm, int kPair>
void Launch(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  int64_t rows = a.products[0].n;
  for (int i = 1; i < a.count && kPair == 1; ++i) rows += a.products[i].n;
  const dim3 grid(unsigned(CeilDiv(rows, kWarpsPerBlock))), block(kWarp, kWarpsPerBlock);
  const int64_t m = a.products[0].m;
  const auto launch = [&](auto kernel) { LaunchOverlapped(overlap, s, grid, block, kernel, a); };
  if (m == 1) {
    launch(FusedKernel<E, 1, kNorm, kPair>);
  } else if (m == 2) {
    launch(FusedKernel<E, 2, kNorm, kPair>);
  } else if (m <= 4) {
    launch(FusedKernel<E, 4, kNorm, kPair>);
  } else {
    launch(FusedKernel<E, 8, kNorm, kPair>);
  }
}

template <typename E>
void LaunchOf(CudaStream s, const FusedMatVecArgs& a, bool overlap) {
  if (a.gain != nullptr) {
    a.hidden != nullptr ? Launch<E, true, 2>(s, a, overlap) : Launch<E, true, 1>(s, a, overlap);
  } else {
    a.hidden != nullptr ? Launch<E, false, 2>(s, a, overlap) : Launch<E, false, 1>(s, a, overlap);
  }
}

bool On16Bytes(const void* data, int64_t stride_bytes) {
  return (reinterpret_cast<uintptr_t>(data) | uintptr_t(stride_bytes)) % 16 == 0;
}

}  // namespace

bool CanFuse(const MatMulArgs<float>& p) {
  const bool plain = p.w_type == DType::kF32 || p.w_type == DType::kBF16;
  return plain && p.m >= 1 && p.m <= kMatVecRows && p.n >= 1 && p.k % kUnit == 0 && p.k >= kUnit &&
         p.k < (int64_t{1} << 30) && On16Bytes(p.x, p.m == 1 ? 0 : p.x_stride * 4) &&
         On16Bytes(p.w, RowBytes(p.w_type, p.w_stride));
}

void FusedMatVec(CudaStream s, const FusedMatVecArgs& args, bool overlap) {
  if (args.products[0].w_type == DType::kBF16) {
    LaunchOf<__nv_bfloat16>(s, args, overlap);
  } else {
    LaunchOf<float>(s, args, overlap);
  }
}

}  // namespace toroid
