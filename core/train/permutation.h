// A shuffle of 0 .. n - 1 without a table: a Feistel network on the fewest bits that hold n - 1,
// walked until it falls below n again (Black & Rogaway 2002, "Ciphers with arbitrary finite
// domains": on average less than two rounds of walking). Immutable, hence thread-safe.
#pragma once

#include <array>
#include <cstdint>

namespace toroid {

class KeyedPermutation {
 public:
  // Another one for each (seed, stream). REQUIRES 0 < n < 2^62.
  KeyedPermutation(int64_t n, uint64_t seed, uint64_t stream);

  // REQUIRES 0 <= i < n.
  int64_t At(int64_t i) const;

 private:
  uint64_t Walk(uint64_t x) const;

  uint64_t n_;
  int low_bits_, high_bits_;
  std::array<uint64_t, 8> keys_;  // of the half rounds
};

}  // namespace toroid
