// The loops of exchange_loops.h as the compiler makes vectors of them, compiled once per
// instruction set and without contraction: a multiplication and an addition stay two roundings.
// Nothing here may call a function that another file has too: the linker would keep one of them.
#pragma once

#include "kernels/exchange_loops.h"

namespace toroid {
namespace {

void ToBf16Loop(const float* __restrict x, int64_t n, uint8_t* __restrict codes) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const uint32_t kept = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded;
    const uint16_t code = uint16_t(kept >> 16);
    __builtin_memcpy(codes + 2 * i, &code, 2);
  }
}

void FromBf16Loop(const uint8_t* __restrict codes, int64_t n, float* __restrict x) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t code;
    __builtin_memcpy(&code, codes + 2 * i, 2);
    x[i] = __builtin_bit_cast(float, uint32_t{code} << 16);
  }
}

void AddWeightedLoop(const float* __restrict x, double weight, int64_t n, double* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * double(x[i]);
}

void DivideLoop(const double* __restrict sum, double weights, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const float mean = float(sum[i] / weights);
    out[i] = mean == mean ? mean : __builtin_nanf("");
  }
}

// HashElement, written out.
uint64_t HashLoop(const float* __restrict x, uint64_t first, int64_t n) {
  uint64_t hash = 0, place = first;
  for (int64_t i = 0; i < n; ++i, place += kHashStep) {
    uint64_t h = __builtin_bit_cast(uint64_t, double(x[i])) ^ place;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93u;
    hash += h ^ (h >> 32);
  }
  return hash;
}

constexpr ExchangeLoops kExchangeLoops = {ToBf16Loop, FromBf16Loop, AddWeightedLoop, DivideLoop,
                                          HashLoop};

}  // namespace
}  // namespace toroid
