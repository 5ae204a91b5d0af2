#include "core/io/crc32c.h"

#include <array>
#include <cstring>

namespace toroid {
namespace {

// Eight bytes at a time: table k tells what a byte does to the remainder k bytes later.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables = {};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ (remainder & 1 ? 0x82f63b78u : 0);
    }
    tables[0][byte] = remainder;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 255];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

}  // namespace

uint32_t Crc32c(absl::Span<const uint8_t> bytes, uint32_t before) {
  static const bool instruction = __builtin_cpu_supports("sse4.2");
  return instruction ? Crc32cByInstruction(bytes, before) : Crc32cByTables(bytes, before);
}

uint32_t Crc32cByTables(absl::Span<const uint8_t> bytes, uint32_t before) {
  uint32_t remainder = ~before;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    word ^= remainder;
    remainder = 0;
    for (size_t k = 0; k < 8; ++k) remainder ^= kTables[7 - k][(word >> (8 * k)) & 255];
  }
  for (; i < bytes.size(); ++i) {
    remainder = (remainder >> 8) ^ kTables[0][(remainder ^ bytes[i]) & 255];
  }
  return ~remainder;
}

}  // namespace toroid
