#include "core/train/permutation.h"

#include <bit>

#include "core/check.h"
#include "core/random.h"

namespace toroid {
namespace {

// The finaliser of MurmurHash3.
uint64_t Scramble(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

}  // namespace

KeyedPermutation::KeyedPermutation(int64_t n, uint64_t seed, uint64_t stream) : n_(uint64_t(n)) {
  TOROID_CHECK(n > 0 && n < int64_t{1} << 62);
  const int bits = std::bit_width(n_ - 1);
  low_bits_ = bits / 2;
  high_bits_ = bits - low_bits_;
  for (size_t i = 0; i < keys_.size(); i += 2) {
    const auto words = Philox(seed, i, stream);
    keys_[i] = uint64_t{words[0]} << 32 | words[1];
    keys_[i + 1] = uint64_t{words[2]} << 32 | words[3];
  }
}

// Each half round adds to one half a function of the other, which stays: hence a permutation.
uint64_t KeyedPermutation::Walk(uint64_t x) const {
  const uint64_t low_mask = (uint64_t{1} << low_bits_) - 1;
  const uint64_t high_mask = (uint64_t{1} << high_bits_) - 1;
  uint64_t low = x & low_mask, high = x >> low_bits_;
  for (size_t i = 0; i < keys_.size(); i += 2) {
    low ^= Scramble(high + keys_[i]) & low_mask;
    high ^= Scramble(low + keys_[i + 1]) & high_mask;
  }
  return high << low_bits_ | low;
}

int64_t KeyedPermutation::At(int64_t i) const {
  TOROID_CHECK(i >= 0 && uint64_t(i) < n_);
  uint64_t x = uint64_t(i);
  do x = Walk(x);
  while (x >= n_);
  return int64_t(x);
}

}  // namespace toroid
