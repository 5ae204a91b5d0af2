#include "kernels/matvec.cuh"
#include "kernels/stored_weight.cuh"

namespace toroid {

namespace {

constexpr int kRowsPerBlock = 4;

__device__ inline float BiasAt(DType type, const void* bias, int64_t i) {
  if (bias == nullptr) return 0.0f;
  return type == DType::kF64 ? float(static_cast<const double*>(bias)[i])
                             : static_cast<const float*>(bias)[i];
}

// Four elements of x from `first` on; past the end of the row (k) they are zero.
template <bool kVector>
__device__ inline float4 LoadFour(const float* x, int64_t first, int64_t k) {
  if constexpr (kVector) {
    return __ldg(reinterpret_cast<const float4*>(x + first));
  } else {
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = first + i < k ? x[first + i] : 0.0f;
    return {four[0], four[1], four[2], four[3]};
  }
}

// A warp per row of w; a lane takes every 32nd unit. Rows of x from m on repeat the last one.
template <DType kType, int M, bool kVector>
__global__ void MatVecKernel(MatMulArgs<float> a, int64_t w_bytes) {
  const int64_t row = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.y;
  if (row >= a.n) return;
  const uint8_t* w = static_cast<const uint8_t*>(a.w) + row * w_bytes;
  const float* x[M];
#pragma unroll
  for (int r = 0; r < M; ++r) x[r] = a.x + (r < a.m ? r : a.m - 1) * a.x_stride;
  float sum[M] = {};
  const int64_t units = CeilDiv(a.k, kUnit);
#pragma unroll(M == 1 ? 4 : 2)
  for (int64_t u = threadIdx.x; u < units; u += kWarp) {
    float weight[kUnit];
    LoadUnit<kType, kVector>(w, u, a.k, weight);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t first = UnitHalf<kType>(u, half);
#pragma unroll
      for (int r = 0; r < M; ++r) {
        const float4 v = LoadFour<kVector>(x[r], first, a.k);
        sum[r] += weight[half * 4] * v.x + weight[half * 4 + 1] * v.y + weight[half * 4 + 2] * v.z +
                  weight[half * 4 + 3] * v.w;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < M; ++r) {
    const float total = WarpSum(sum[r]);
    if (threadIdx.x == 0 && r < a.m) {
      a.out[r * a.out_stride + row] = total + BiasAt(a.bias_type, a.bias, row);
    }
  }
}

template <DType kType, bool kVector>
void Launch(CudaStream s, const MatMulArgs<float>& a) {
  const dim3 block(kWarp, kRowsPerBlock);
  const unsigned grid = unsigned(CeilDiv(a.n, kRowsPerBlock));
  const int64_t w_bytes = RowBytes(kType, a.w_stride);
  if (a.m == 1) {
    MatVecKernel<kType, 1, kVector><<<grid, block, 0, s>>>(a, w_bytes);
  } else if (a.m == 2) {
    MatVecKernel<kType, 2, kVector><<<grid, block, 0, s>>>(a, w_bytes);
  } else if (a.m <= 4) {
    MatVecKernel<kType, 4, kVector><<<grid, block, 0, s>>>(a, w_bytes);
  } else {
    MatVecKernel<kType, 8, kVector><<<grid, block, 0, s>>>(a, w_bytes);
  }
}

bool IsAligned(const void* data, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0;
}

template <typename E>
struct AddBiasElement {
  E* x;
  int64_t stride;
  DType bias_type;
  const void* bias;
  __device__ void operator()(int64_t row, int64_t col) const {
    E& value = x[row * stride + col];
    value = Convert<E>(Widen(value) + BiasAt(bias_type, bias, col));
  }
};

}  // namespace

void MatVec(CudaStream s, const MatMulArgs<float>& args) {
  if (args.m == 0 || args.n == 0) return;
  WithStoredType(args.w_type, [&]<DType kType>() {
    const bool vector = args.k % kUnit == 0 &&
                        IsAligned(args.x, args.m == 1 ? 0 : args.x_stride * 4) &&
                        (IsQuantised(kType) || IsAligned(args.w, RowBytes(kType, args.w_stride)));
    vector ? Launch<kType, true>(s, args) : Launch<kType, false>(s, args);
  });
}

void AddBias(CudaStream s, DType type, void* x, int64_t stride, int64_t m, int64_t n,
             DType bias_type, const void* bias) {
  WithActivation(type, [&]<typename E>(E) {
    ForEach(s, m, n, AddBiasElement<E>{static_cast<E*>(x), stride, bias_type, bias});
  });
}

}  // namespace toroid
