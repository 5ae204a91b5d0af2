// What the fused products (matvec_fused.h) read: eight stored weights at a time, and the elements
// of x beside them. Included by kernel files alone.
#pragma once

#include "kernels/matvec_fused.h"
#include "kernels/stored_weight.cuh"

namespace toroid {
namespace {

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

// Groups of `rows` rows of w that there are: each product's own, or those of two products together.
template <int kPair>
inline int64_t GroupsOf(const FusedMatVecArgs& a, int rows) {
  int64_t groups = CeilDiv(a.products[0].n, rows);
  for (int i = 1; i < a.count && kPair == 1; ++i) groups += CeilDiv(a.products[i].n, rows);
  return groups;
}

// Row i of group `group` of product p, which is a.products[product]; with kPair rows of the next
// product lie between its own. Rows from n on repeat the last one.
template <DType kType, int kPair, int kRows>
__device__ __forceinline__ const uint8_t* RowOf(const FusedMatVecArgs& a,
                                                const MatMulArgs<float>& p, int product,
                                                int64_t group, int i) {
  const MatMulArgs<float>& own = a.products[product + i % kPair];
  const int64_t row = group * kRows + i / kPair;
  return static_cast<const uint8_t*>(own.w) +
         (row < p.n ? row : p.n - 1) * RowBytes(kType, own.w_stride);
}

__device__ inline float BiasAt(const MatMulArgs<float>& a, int64_t i) {
  if (a.bias == nullptr) return 0.0f;
  return a.bias_type == DType::kF64 ? float(static_cast<const double*>(a.bias)[i])
                                    : static_cast<const float*>(a.bias)[i];
}

}  // namespace
}  // namespace toroid
