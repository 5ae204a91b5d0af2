// Decoding of stored elements to float, one block after the other, exactly as Python's
// gguf.quants.dequantize does (same float32 operations in the same order).
//
// This is for loading and for oracles. Products read kept quantised weights with their own code.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace toroid {

// Decodes `count` consecutive elements of one row, a multiple of the block. `data` has the layout
// of GGUF v3 and no alignment. F64 is rounded. REQUIRES: type is F32, F64, F16, BF16 or quantised.
void DequantiseRow(DType type, const uint8_t* data, int64_t count, float* out);

}  // namespace toroid
