#include "core/io/dequantise.h"

#include <cstring>

#include "core/check.h"

namespace toroid {
namespace {

template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

float Half(const uint8_t* data) { return FromF16(Load<uint16_t>(data)); }

// Blocks of 32. A byte holds elements j (low half) and j + 16 (high half).

// q8_0: half d, 32 int8. x = d q
void BlockQ8_0(const uint8_t* block, float* out) {
  const float d = Half(block);
  for (int j = 0; j < 32; ++j) out[j] = d * float(int8_t(block[2 + j]));
}

// q4_0: half d, 16 bytes. x = d (q - 8)
void BlockQ4_0(const uint8_t* block, float* out) {
  const float d = Half(block);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * float(int(block[2 + j] & 15) - 8);
    out[j + 16] = d * float(int(block[2 + j] >> 4) - 8);
  }
}

// q4_1: half d, half m, 16 bytes. x = d q + m
void BlockQ4_1(const uint8_t* block, float* out) {
  const float d = Half(block), m = Half(block + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * float(block[4 + j] & 15) + m;
    out[j + 16] = d * float(block[4 + j] >> 4) + m;
  }
}

// The fifth bit of element j is bit j of a 32-bit word before the 16 bytes.
int FiveBits(const uint8_t* nibbles, uint32_t high, int j) {
  const int low = j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4;
  return low | int((high >> j) & 1) << 4;
}

// q5_0: half d, 32 high bits, 16 bytes. x = d (q - 16)
void BlockQ5_0(const uint8_t* block, float* out) {
  const float d = Half(block);
  const uint32_t high = Load<uint32_t>(block + 2);
  for (int j = 0; j < 32; ++j) out[j] = d * float(FiveBits(block + 6, high, j) - 16);
}

// q5_1: half d, half m, 32 high bits, 16 bytes. x = d q + m
void BlockQ5_1(const uint8_t* block, float* out) {
  const float d = Half(block), m = Half(block + 2);
  const uint32_t high = Load<uint32_t>(block + 4);
  for (int j = 0; j < 32; ++j) out[j] = d * float(FiveBits(block + 8, high, j)) + m;
}

// Blocks of 256, in eight groups of 32 (q4_k, q5_k) with a 6-bit scale and a 6-bit minimum each,
// packed in 12 bytes: groups 0..3 in the low 6 bits of bytes 0..3 (scales) and 4..7 (minima);
// groups 4..7 in the halves of bytes 8..11, their upper two bits in the top bits of bytes 0..7.
struct ScaleMin {
  float scale, min;
};
ScaleMin GroupScale(const uint8_t* packed, int group) {
  if (group < 4) return {float(packed[group] & 63), float(packed[group + 4] & 63)};
  const int scale = (packed[group + 4] & 15) | ((packed[group - 4] >> 2) & 0x30);
  const int min = (packed[group + 4] >> 4) | ((packed[group] >> 2) & 0x30);
  return {float(scale), float(min)};
}

// q4_k: half d, half dmin, 12 bytes of scales, 128 bytes. Groups 2p and 2p + 1 are the low and the
// high halves of bytes 32p .. 32p + 31. x = (d scale) q - (dmin min)
void BlockQ4_K(const uint8_t* block, float* out) {
  const float d = Half(block), dmin = Half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = GroupScale(block + 4, group);
    const float scale = d * packed.scale, min = dmin * packed.min;
    const uint8_t* bytes = block + 16 + group / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const int q = group % 2 ? bytes[j] >> 4 : bytes[j] & 15;
      out[group * 32 + j] = scale * float(q) - min;
    }
  }
}

// q5_k: as q4_k with 32 bytes of fifth bits before the nibbles: bit `group` of byte j.
void BlockQ5_K(const uint8_t* block, float* out) {
  const float d = Half(block), dmin = Half(block + 2);
  const uint8_t* high = block + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin packed = GroupScale(block + 4, group);
    const float scale = d * packed.scale, min = dmin * packed.min;
    const uint8_t* bytes = block + 48 + group / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const int low = group % 2 ? bytes[j] >> 4 : bytes[j] & 15;
      const int q = low | ((high[j] >> group) & 1) << 4;
      out[group * 32 + j] = scale * float(q) - min;
    }
  }
}

// q6_k: 128 bytes of low halves, 64 bytes of upper bit pairs, 16 int8 scales (one per 16 elements),
// half d. Each half of 128 elements has four rows of 32: rows 0 and 2 share the first 32 low bytes,
// rows 1 and 3 the next 32; row r has bits 2r, 2r + 1 of the upper bytes. x = (d scale) (q - 32)
void BlockQ6_K(const uint8_t* block, float* out) {
  const uint8_t* scales = block + 192;
  const float d = Half(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + half * 64;
    const uint8_t* high = block + 128 + half * 32;
    for (int row = 0; row < 4; ++row) {
      for (int j = 0; j < 32; ++j) {
        const uint8_t byte = low[row % 2 * 32 + j];
        const int q = (row < 2 ? byte & 15 : byte >> 4) | ((high[j] >> (2 * row)) & 3) << 4;
        const int element = half * 128 + row * 32 + j;
        const float scale = d * float(int8_t(scales[element / 16]));
        out[element] = scale * float(q - 32);
      }
    }
  }
}

void Blocks(DType type, const uint8_t* data, int64_t count, float* out,
            void (*decode)(const uint8_t*, float*)) {
  const DTypeInfo info = Info(type);
  for (int64_t i = 0; i < count; i += info.block, data += info.bytes) decode(data, out + i);
}

}  // namespace

void DequantiseRow(DType type, const uint8_t* data, int64_t count, float* out) {
  TOROID_CHECK_EQ(count % Info(type).block, 0);
  switch (type) {
    case DType::kF32:
      std::memcpy(out, data, size_t(count) * sizeof(float));
      return;
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) out[i] = float(Load<double>(data + 8 * i));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = Half(data + 2 * i);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = FromBf16(Load<uint16_t>(data + 2 * i));
      return;
    case DType::kQ8_0:
      return Blocks(type, data, count, out, BlockQ8_0);
    case DType::kQ4_0:
      return Blocks(type, data, count, out, BlockQ4_0);
    case DType::kQ4_1:
      return Blocks(type, data, count, out, BlockQ4_1);
    case DType::kQ5_0:
      return Blocks(type, data, count, out, BlockQ5_0);
    case DType::kQ5_1:
      return Blocks(type, data, count, out, BlockQ5_1);
    case DType::kQ4_K:
      return Blocks(type, data, count, out, BlockQ4_K);
    case DType::kQ5_K:
      return Blocks(type, data, count, out, BlockQ5_K);
    case DType::kQ6_K:
      return Blocks(type, data, count, out, BlockQ6_K);
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  TOROID_CHECK_MSG(false, Info(type).name);
}

}  // namespace toroid
