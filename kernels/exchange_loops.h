// Inner loops over what pods exchange, in float32: one table per instruction set, the same bits in
// all of them (same_bits_test.cc), since pods on unlike machines must agree. x may lie anywhere,
// codes at any byte. Double, which is for proofs, has its loops where it is used.
#pragma once

#include <cstdint>

namespace toroid {

struct ExchangeLoops {
  // bf16 codes [2 n bytes]: to nearest, ties to even; and back.
  void (*to_bf16)(const float* x, int64_t n, uint8_t* codes);
  void (*from_bf16)(const uint8_t* codes, int64_t n, float* x);
  // sum += weight x, in double: two roundings.
  void (*add_weighted)(const float* x, double weight, int64_t n, double* sum);
  // out = sum / weights, rounded to double, then to float. What is no number becomes one NaN,
  // 0x7fc00000: which of two a sum keeps, and the sign of inf - inf, are the instruction set's.
  void (*divide)(const double* sum, double weights, int64_t n, float* out);
  // The sum modulo 2^64 of HashElement(x[i], first + i * kHashStep).
  uint64_t (*hash)(const float* x, uint64_t first, int64_t n);
};

constexpr uint64_t kHashStep = 0x9e3779b97f4a7c15u;  // odd: places are apart

// A bijection of the value's bits, so one that changes changes the sum: as little work as that
// takes, for merges of pods hash every element that they merge.
inline uint64_t HashElement(double value, uint64_t place) {
  uint64_t x = __builtin_bit_cast(uint64_t, value) ^ place;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

const ExchangeLoops& ExchangeLoopsAvx2();
const ExchangeLoops& ExchangeLoopsAvx512();
// The table of CurrentIsa().
const ExchangeLoops& CurrentExchangeLoops();

}  // namespace toroid
