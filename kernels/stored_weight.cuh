// Stored weights on a CUDA device, eight at a time. Included by kernel files alone.
//
// A unit is what one thread widens at once. Unit u of a plain type or of q8_0 is elements 8 u to
// 8 u + 7. The nibbles of q4_0 and q4_1 hold element i of a block's first half and of its second in
// one byte, so a unit is four bytes: elements 4 j to 4 j + 3 and 16 + 4 j to 16 + 4 j + 3 of block
// u / 4, with j = u % 4. Both halves of a unit are thus four elements in a row.
#pragma once

#include "kernels/dequantize.h"
#include "kernels/device.cuh"

namespace toroid {
namespace {

inline constexpr int kUnit = 8;

constexpr bool IsNibbles(DType type) { return type == DType::kQ4_0 || type == DType::kQ4_1; }

// First element of half 0 or 1 of unit u.
template <DType kType>
__device__ inline int64_t UnitHalf(int64_t u, int half) {
  return IsNibbles(kType) ? u / 4 * 32 + u % 4 * 4 + half * 16 : u * kUnit + half * 4;
}

__device__ inline float HalfBits(uint32_t bits) { return __half2float(__ushort_as_half(bits)); }

// Four nibbles, the low or the high ones of four bytes.
__device__ inline void WidenNibbles(uint32_t bytes, float d, float m, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = d * float((bytes >> (8 * i)) & 15u) + m;
}

// out[0..7] = unit u of a quantised row. A block starts at an even address, q4_1's at a multiple
// of 4.
template <DType kType>
__device__ inline void LoadQuantised(const uint8_t* row, int64_t u, float* out) {
  const uint8_t* block = row + u / 4 * Info(kType).bytes;
  const int j = int(u % 4);
  if constexpr (kType == DType::kQ4_1) {
    const uint32_t scales = __ldg(reinterpret_cast<const uint32_t*>(block));
    const uint32_t bytes = __ldg(reinterpret_cast<const uint32_t*>(block) + 1 + j);
    const float d = HalfBits(scales & 0xffffu), m = HalfBits(scales >> 16);
    WidenNibbles(bytes, d, m, out);
    WidenNibbles(bytes >> 4, d, m, out + 4);
  } else {
    const uint16_t* words = reinterpret_cast<const uint16_t*>(block);
    const float d = HalfBits(__ldg(words));
    if constexpr (kType == DType::kQ4_0) {
      const uint32_t bytes = __ldg(words + 1 + 2 * j) | uint32_t(__ldg(words + 2 + 2 * j)) << 16;
      WidenNibbles(bytes, d, -8.0f * d, out);
      WidenNibbles(bytes >> 4, d, -8.0f * d, out + 4);
    } else {
      for (int i = 0; i < 4; ++i) {
        const uint32_t two = __ldg(words + 1 + 4 * j + i);
        out[2 * i] = d * float(int8_t(two & 0xffu));
        out[2 * i + 1] = d * float(int8_t(two >> 8));
      }
    }
  }
}

// out[0..7] = unit u of a row of `k` weights, of plain types zeros past its end. kVector: k is a
// multiple of 8 and rows of plain types start at multiples of 16 bytes.
template <DType kType, bool kVector>
__device__ inline void LoadUnit(const uint8_t* row, int64_t u, int64_t k, float* out) {
  if constexpr (IsQuantised(kType)) {
    LoadQuantised<kType>(row, u, out);
  } else {
    using E = typename Stored<kType>::Type;
    const E* from = reinterpret_cast<const E*>(row) + u * kUnit;
    if constexpr (kVector) {
      constexpr int kLoads = kUnit * sizeof(E) / sizeof(uint4);
      alignas(16) E values[kUnit];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        reinterpret_cast<uint4*>(values)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
      }
#pragma unroll
      for (int i = 0; i < kUnit; ++i) out[i] = Widen(values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kUnit; ++i) out[i] = u * kUnit + i < k ? Widen(from[i]) : 0.0f;
    }
  }
}

// Calls body with the stored type as a template argument: body.template operator()<kType>().
template <typename Body>
void WithStoredType(DType type, Body body) {
  switch (type) {
    case DType::kF32:
      return body.template operator()<DType::kF32>();
    case DType::kF64:
      return body.template operator()<DType::kF64>();
    case DType::kF16:
      return body.template operator()<DType::kF16>();
    case DType::kBF16:
      return body.template operator()<DType::kBF16>();
    case DType::kQ8_0:
      return body.template operator()<DType::kQ8_0>();
    case DType::kQ4_0:
      return body.template operator()<DType::kQ4_0>();
    case DType::kQ4_1:
      return body.template operator()<DType::kQ4_1>();
    default:
      return;
  }
}

}  // namespace
}  // namespace toroid
