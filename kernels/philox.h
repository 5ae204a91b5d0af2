// Philox4x32-10 (Salmon et al. 2011): four random words as a function of a 64-bit key and a 128-bit
// counter. Thread-safe: no state.
#pragma once

#include <array>
#include <cstdint>

namespace toroid {

constexpr std::array<uint32_t, 4> Philox(uint64_t key, uint64_t counter_low,
                                         uint64_t counter_high) {
  std::array<uint32_t, 4> c = {uint32_t(counter_low), uint32_t(counter_low >> 32),
                               uint32_t(counter_high), uint32_t(counter_high >> 32)};
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1,
         uint32_t(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// Uniform in [0, 1) with 53 random bits, from the first two words.
constexpr double UniformDouble(const std::array<uint32_t, 4>& words) {
  const uint64_t bits = (uint64_t{words[0]} << 32) | words[1];
  return double(bits >> 11) * 0x1p-53;
}

}  // namespace toroid
