// Rows of plain numbers on their way from a model's files into the type that a rank keeps.
#pragma once

#include <cstdint>

#include "core/check.h"
#include "kernels/dtype.h"

namespace toroid {

template <typename T>
bool AllFinite(const T* values, int64_t count) {
  T sum = 0;  // 0 x is 0 for every finite x and NaN for the others
  for (int64_t i = 0; i < count; ++i) sum += 0 * values[i];
  return sum == 0;
}

// out[i] = values[i] as kF32, kF64 or kBF16, each rounded once to float32 at most before.
template <typename T>
void StorePlain(const T* values, int64_t count, DType stored, void* out) {
  switch (stored) {
    case DType::kF32:
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(out)[i] = float(values[i]);
      return;
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) static_cast<double*>(out)[i] = double(values[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(out)[i] = ToBf16(float(values[i]));
      }
      return;
    default:
      TOROID_CHECK_MSG(false, Info(stored).name);
  }
}

}  // namespace toroid
