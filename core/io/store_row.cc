#include "core/io/store_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/io/plain_values.h"

namespace toroid {
namespace {

constexpr int kBlock = 32;

float Inverse(float d) { return d != 0 ? 1 / d : 0; }

// Rounded to nearest, ties to even. REQUIRES |x| below 65520.
uint16_t ToF16(float x) {
  const float size = std::abs(x);
  TOROID_CHECK(size < 65520.0f);
  const uint32_t sign = std::signbit(x) ? 0x8000 : 0;
  if (size < 0x1p-14f) return uint16_t(sign | uint32_t(std::lrint(size * 0x1p24f)));  // subnormal
  uint32_t bits = std::bit_cast<uint32_t>(size);
  bits += 0xfff + ((bits >> 13) & 1);
  return uint16_t(sign | ((bits >> 13) - (112u << 10)));
}

void PutHalf(float x, uint8_t* out) {
  const uint16_t bits = ToF16(x);
  std::memcpy(out, &bits, sizeof bits);
}

// Element i of a block's first half and of its second share a byte.
void PutNibbles(const int* q, uint8_t* out) {
  for (int i = 0; i < kBlock / 2; ++i) out[i] = uint8_t(q[i] | q[i + kBlock / 2] << 4);
}

void StoreQ8_0(const float* x, uint8_t* out) {
  float largest = 0;
  for (int i = 0; i < kBlock; ++i) largest = std::max(largest, std::abs(x[i]));
  const float d = largest / 127, inverse = Inverse(d);
  PutHalf(d, out);
  for (int i = 0; i < kBlock; ++i) out[2 + i] = uint8_t(int8_t(std::lround(x[i] * inverse)));
}

void StoreQ4_0(const float* x, uint8_t* out) {
  const float largest =
      *std::max_element(x, x + kBlock, [](float a, float b) { return std::abs(a) < std::abs(b); });
  const float d = largest / -8, inverse = Inverse(d);
  PutHalf(d, out);
  int q[kBlock];
  for (int i = 0; i < kBlock; ++i) q[i] = std::min(15, int(x[i] * inverse + 8.5f));
  PutNibbles(q, out + 2);
}

void StoreQ4_1(const float* x, uint8_t* out) {
  const auto [least, most] = std::minmax_element(x, x + kBlock);
  const float m = *least, d = (*most - m) / 15, inverse = Inverse(d);
  PutHalf(d, out), PutHalf(m, out + 2);
  int q[kBlock];
  for (int i = 0; i < kBlock; ++i) q[i] = std::min(15, int((x[i] - m) * inverse + 0.5f));
  PutNibbles(q, out + 4);
}

}  // namespace

void StoreRow(const float* values, int64_t count, DType type, void* out) {
  if (!IsQuantised(type)) return StorePlain(values, count, type, out);
  TOROID_CHECK_EQ(count % kBlock, 0);
  uint8_t* bytes = static_cast<uint8_t*>(out);
  for (int64_t i = 0; i < count; i += kBlock, bytes += Info(type).bytes) {
    switch (type) {
      case DType::kQ8_0:
        StoreQ8_0(values + i, bytes);
        break;
      case DType::kQ4_0:
        StoreQ4_0(values + i, bytes);
        break;
      case DType::kQ4_1:
        StoreQ4_1(values + i, bytes);
        break;
      default:
        TOROID_CHECK_MSG(false, Info(type).name);
    }
  }
}

}  // namespace toroid
