#include <cstring>

#include "kernels/dequantize.h"

namespace toroid {

namespace {

// A file's bytes have no alignment.
template <typename E>
E Load(const uint8_t* x, int64_t i) {
  E value;
  std::memcpy(&value, x + i * static_cast<int64_t>(sizeof(E)), sizeof(E));
  return value;
}

template <typename T>
T Half(const uint8_t* x) {
  return T(FromF16(uint16_t(x[0] | (x[1] << 8))));
}

// The 32-element types. Nibbles: element i of the first half is the low nibble of byte i, of the
// second half the high one; q5 takes its fifth bits from a 32-bit word.
template <typename T>
void DecodeSmallBlock(DType type, const uint8_t* x, T* out) {
  const T d = Half<T>(x);
  if (type == DType::kQ8_0) {
    for (int i = 0; i < 32; ++i) out[i] = d * T(static_cast<int8_t>(x[2 + i]));
    return;
  }
  const bool five = type == DType::kQ5_0 || type == DType::kQ5_1;
  const bool offset = type == DType::kQ4_1 || type == DType::kQ5_1;
  const T m = offset ? Half<T>(x + 2) : T(0);
  const uint8_t* next = x + (offset ? 4 : 2);
  const uint32_t fifth = five ? Load<uint32_t>(next, 0) : 0;
  if (five) next += 4;
  const int bias = offset ? 0 : five ? 16 : 8;
  for (int i = 0; i < 32; ++i) {
    const int nibble = i < 16 ? next[i] & 15 : next[i - 16] >> 4;
    const int q = (nibble | int(((fifth >> i) & 1) << 4)) - bias;
    out[i] = d * T(q) + m;
  }
}

// The 6-bit scale and minimum of sub-block j of 8, packed in 12 bytes.
void ScaleAndMin(const uint8_t* x, int j, int* scale, int* min) {
  if (j < 4) {
    *scale = x[j] & 63, *min = x[j + 4] & 63;
  } else {
    *scale = (x[j + 4] & 15) | ((x[j - 4] >> 6) << 4);
    *min = (x[j + 4] >> 4) | ((x[j] >> 6) << 4);
  }
}

// q4_k: d, d_min, 12 scale bytes, 128 nibble bytes; q5_k has 32 bytes of fifth bits before them.
template <typename T>
void DecodeK45(bool five, const uint8_t* x, T* out) {
  const T d = Half<T>(x), d_min = Half<T>(x + 2);
  const uint8_t* fifth = x + 16;
  const uint8_t* nibbles = x + (five ? 48 : 16);
  for (int j = 0; j < 8; ++j) {
    int scale, min;
    ScaleAndMin(x + 4, j, &scale, &min);
    const uint8_t* bytes = nibbles + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int q = j % 2 == 0 ? bytes[i] & 15 : bytes[i] >> 4;
      if (five) q |= ((fifth[i] >> j) & 1) << 4;
      out[j * 32 + i] = d * T(scale) * T(q) - d_min * T(min);
    }
  }
}

// 128 low-nibble bytes, 64 bytes of two upper bits, 16 signed scales, d.
template <typename T>
void DecodeQ6K(const uint8_t* x, T* out) {
  const T d = Half<T>(x + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = x + half * 64;
    const uint8_t* high = x + 128 + half * 32;
    const int8_t* scales = reinterpret_cast<const int8_t*>(x + 192) + half * 8;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < 32; ++i) {
        const int byte = low[i + quarter % 2 * 32];
        const int nibble = quarter < 2 ? byte & 15 : byte >> 4;
        const int q = (nibble | (((high[i] >> (2 * quarter)) & 3) << 4)) - 32;
        out[half * 128 + quarter * 32 + i] = d * T(scales[i / 16 + 2 * quarter]) * T(q);
      }
    }
  }
}

template <typename T>
void DecodeBlock(DType type, const uint8_t* x, T* out) {
  switch (type) {
    case DType::kQ4_K:
    case DType::kQ5_K:
      DecodeK45(type == DType::kQ5_K, x, out);
      return;
    case DType::kQ6_K:
      DecodeQ6K(x, out);
      return;
    default:
      DecodeSmallBlock(type, x, out);
  }
}

template <typename T>
void Decode(DType type, const void* row, int64_t begin, int64_t count, T* out) {
  const uint8_t* from = static_cast<const uint8_t*>(row) + RowBytes(type, begin);
  switch (type) {
    case DType::kF32:
      for (int64_t i = 0; i < count; ++i) out[i] = T(Load<float>(from, i));
      return;
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) out[i] = T(Load<double>(from, i));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = T(FromF16(Load<uint16_t>(from, i)));
      }
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = T(FromBf16(Load<uint16_t>(from, i)));
      }
      return;
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      for (int64_t i = 0; i < count; ++i) out[i] = T(0);
      return;
    default: {
      const DTypeInfo info = Info(type);
      for (int64_t i = 0; i < count; i += info.block, from += info.bytes) {
        DecodeBlock(type, from, out + i);
      }
    }
  }
}

}  // namespace

void DecodeRow(DType type, const void* row, int64_t begin, int64_t count, float* out) {
  Decode(type, row, begin, count, out);
}
void DecodeRow(DType type, const void* row, int64_t begin, int64_t count, double* out) {
  Decode(type, row, begin, count, out);
}

}  // namespace toroid
