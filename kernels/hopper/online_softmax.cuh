// Online softmax of the two rows that a thread holds of a score fragment (wgmma.cuh).
//
//   m' = max(m, max_j s_j);  a = 2^(m - m');  p_j = 2^(s_j - m');  l' = a l + sum_j p_j
//
// in base 2: scores are multiplied by scale log2(e) within the exponent. m is the same in the four
// threads of a row, l is each thread's own share until Total.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace toroid::hopper {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float MinusInfinity() { return __int_as_float(0xff800000); }

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Maximum and sum over the four threads that share a row.
__device__ inline float RowMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float RowSum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

struct OnlineSoftmax {
  float max[2] = {MinusInfinity(), MinusInfinity()};
  float sum[2] = {0, 0};

  // Turns scores into probabilities relative to the new maximum; `rescale` is a.
  template <int kCount>
  __device__ void Fold(float (&s)[kCount], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float even = s[2 * h], odd = s[2 * h + 1];  // two chains of maxima, then of sums
#pragma unroll
      for (int j = 4; j < kCount; j += 4) {
        even = fmaxf(even, s[j + 2 * h]);
        odd = fmaxf(odd, s[j + 2 * h + 1]);
      }
      const float now = fmaxf(max[h], RowMax(fmaxf(even, odd)) * scale_log2);
      const float base = now == MinusInfinity() ? 0.f : now;  // no key seen yet: all p are 0
      rescale[h] = Exp2(max[h] - base);
      max[h] = now;
      even = odd = 0;
#pragma unroll
      for (int j = 0; j < kCount; j += 4) {
        even += s[j + 2 * h] = Exp2(fmaf(s[j + 2 * h], scale_log2, -base));
        odd += s[j + 2 * h + 1] = Exp2(fmaf(s[j + 2 * h + 1], scale_log2, -base));
      }
      sum[h] = fmaf(sum[h], rescale[h], even + odd);
    }
  }
};

// Probabilities to bf16, two to a register: the A operand of P V.
template <int kCount>
__device__ void Round(const float (&s)[kCount], uint32_t (&p)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(s[i], s[i + 1]);
    p[i / 2] = reinterpret_cast<const uint32_t&>(pair);
  }
}

}  // namespace toroid::hopper
