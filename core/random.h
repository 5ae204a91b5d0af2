// Counter-based random numbers over Philox4x32-10 (kernels/philox.h). A number is a function of its
// key and counter, so what it is used for (seed, step, parameter, global index) decides it, never
// the rank, the mesh or the order of calls. Thread-safe: no state.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/philox.h"

namespace toroid {

// Normal(0, 1) number `index` of stream `stream`, by Box and Muller from one Philox block.
inline double NormalAt(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = Philox(seed, index, stream);
  const double u = (double(words[0]) + 1.0) * 0x1p-32;  // in (0, 1]
  const double v = double(words[1]) * 0x1p-32;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * 3.14159265358979323846 * v);
}

// FNV-1a, to turn a name into a stream number.
constexpr uint64_t HashName(const char* data, uint64_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint64_t i = 0; i < size; ++i) hash = (hash ^ uint8_t(data[i])) * 0x100000001b3u;
  return hash;
}

}  // namespace toroid
