// Element and block types. It lives here, not in core, because kernels take quantised weights and
// may include nothing to their right.
//
// A plain type stores one element in `bytes`; a quantised type stores a block of `block`
// consecutive elements of one row in `bytes`, laid out as GGUF v3 lays them out.
#pragma once

#include <bit>
#include <cstdint>

namespace toroid {

enum class DType : uint8_t {
  kF32,
  kF64,
  kF16,
  kBF16,
  kI32,
  kI64,
  kU8,  // plain
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K  // quantised, by row
};

struct DTypeInfo {
  const char* name;  // as in messages and reports: "f32", "q4_1"
  int block;         // elements a block holds; 1 for a plain type
  int bytes;         // bytes of a block
};

constexpr DTypeInfo Info(DType type) {
  switch (type) {
    case DType::kF32:
      return {"f32", 1, 4};
    case DType::kF64:
      return {"f64", 1, 8};
    case DType::kF16:
      return {"f16", 1, 2};
    case DType::kBF16:
      return {"bf16", 1, 2};
    case DType::kI32:
      return {"i32", 1, 4};
    case DType::kI64:
      return {"i64", 1, 8};
    case DType::kU8:
      return {"u8", 1, 1};
    case DType::kQ8_0:
      return {"q8_0", 32, 34};
    case DType::kQ4_0:
      return {"q4_0", 32, 18};
    case DType::kQ4_1:
      return {"q4_1", 32, 20};
    case DType::kQ5_0:
      return {"q5_0", 32, 22};
    case DType::kQ5_1:
      return {"q5_1", 32, 24};
    case DType::kQ4_K:
      return {"q4_k", 256, 144};
    case DType::kQ5_K:
      return {"q5_k", 256, 176};
    case DType::kQ6_K:
      return {"q6_k", 256, 210};
  }
  return {"unknown", 1, 0};
}

constexpr bool IsQuantised(DType type) { return type >= DType::kQ8_0; }

// Bytes of `count` consecutive elements of one row; count is a multiple of the block.
constexpr int64_t RowBytes(DType type, int64_t count) {
  return count / Info(type).block * Info(type).bytes;
}

// bfloat16 is the upper half of a float32; storing rounds to nearest, ties to even, NaN stays NaN.
constexpr float FromBf16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }
constexpr uint16_t ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// IEEE half precision, subnormals included.
constexpr float FromF16(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16;
  const uint32_t exponent = (x >> 10) & 0x1f;
  const uint32_t fraction = x & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = float(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

}  // namespace toroid
