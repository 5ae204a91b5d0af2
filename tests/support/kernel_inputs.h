// Inputs of kernel tests: reproducible random arrays, stored weights, and every instruction set of
// this machine in turn.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/random.h"
#include "kernels/dequantize.h"
#include "kernels/isa.h"
#include "tests/reference/ops.h"

namespace toroid {

// Normal numbers that float32 holds exactly, so that float kernels and the reference see the same.
inline reference::Array RandomArray(int64_t size, uint64_t seed, double deviation = 1) {
  reference::Array x(size);
  for (int64_t i = 0; i < size; ++i) x[i] = float(deviation * NormalAt(seed, 0, i));
  return x;
}

template <typename T>
std::vector<T> As(const reference::Array& x) {
  return std::vector<T>(x.begin(), x.end());
}

// Rows copied `stride` apart into a wider array filled with `fill`.
template <typename T>
std::vector<T> Spread(const std::vector<T>& x, int64_t rows, int64_t stride, T fill) {
  const int64_t cols = int64_t(x.size()) / std::max<int64_t>(rows, 1);
  std::vector<T> wide(rows * stride, fill);
  for (int64_t i = 0; i < rows; ++i) std::copy_n(&x[i * cols], cols, &wide[i * stride]);
  return wide;
}

// The first `cols` of each row of `stride`; EXPECTs the rest to be `fill`.
template <typename T>
std::vector<T> Gather(const std::vector<T>& wide, int64_t cols, int64_t stride, T fill) {
  std::vector<T> x;
  for (size_t i = 0; i < wide.size(); ++i) {
    if (int64_t(i) % stride < cols) {
      x.push_back(wide[i]);
    } else {
      EXPECT_EQ(wide[i], fill);
    }
  }
  return x;
}

// Random bytes of `rows` rows of `cols` stored elements: any bytes are some weight, but scales are
// kept near 2^-4 so that the values are ordinary numbers.
inline std::vector<uint8_t> RandomWeights(DType type, int64_t rows, int64_t cols, uint64_t seed) {
  const DTypeInfo info = Info(type);
  std::vector<uint8_t> bytes(rows * RowBytes(type, cols));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(Philox(seed, i, 1)[0] >> 13);
  const int64_t units = int64_t(bytes.size()) / info.bytes;
  const auto put_half = [&](int64_t at, uint64_t i) {  // +-[2^-5, 2^-4)
    const uint32_t random = Philox(seed, i, 2)[0];
    const uint16_t half = uint16_t((10u << 10) | (random & 0x83ff));
    std::memcpy(&bytes[at], &half, 2);
  };
  for (int64_t u = 0; u < units; ++u) {
    const int64_t at = u * info.bytes;
    const double value = float(NormalAt(seed, 3, u));
    const float narrow = float(value);
    const uint16_t bf16 = ToBf16(narrow);
    switch (type) {
      case DType::kF32:
        std::memcpy(&bytes[at], &narrow, 4);
        break;
      case DType::kF64:
        std::memcpy(&bytes[at], &value, 8);
        break;
      case DType::kBF16:
        std::memcpy(&bytes[at], &bf16, 2);
        break;
      case DType::kF16:
        put_half(at, u);
        break;
      case DType::kQ6_K:
        put_half(at + 208, u);
        break;
      case DType::kQ4_1:
      case DType::kQ5_1:
      case DType::kQ4_K:
      case DType::kQ5_K:
        put_half(at, 2 * u);
        put_half(at + 2, 2 * u + 1);
        break;
      default:
        put_half(at, u);
    }
  }
  return bytes;
}

inline reference::Array Decoded(DType type, const std::vector<uint8_t>& bytes) {
  const int64_t count = int64_t(bytes.size()) / Info(type).bytes * Info(type).block;
  reference::Array x(count);
  DecodeRow(type, bytes.data(), 0, count, x.data());
  return x;
}

// Calls body(isa) for each instruction set of this machine, then goes back to the choice before.
template <typename Body>
void ForEachIsa(Body body) {
  const Isa before = CurrentIsa();
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    SCOPED_TRACE(IsaName(isa));
    ASSERT_EQ(SelectIsa(IsaName(isa)), "");
    body(isa);
  }
  SelectIsa(IsaName(before));
}

}  // namespace toroid
