// Numbers stored as f32, bf16, or in the blocks of q8_0, q4_0 and q4_1, as llama.cpp's reference
// quantisation stores them (ggml-quants.c, quantize_row_*_ref): for tests and random models.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace toroid {

// out = `count` values of a row, RowBytes(type, count) bytes; count is a multiple of the block.
// With scales d, rounded to f16 once the numbers are chosen, over each block of 32:
//   q8_0  d = max |x| / 127            q = round(x / d)
//   q4_0  d = (x of largest |x|) / -8  q = min(15, floor(x / d + 8.5))
//   q4_1  m = min x, d = (max - m) / 15  q = min(15, floor((x - m) / d + 0.5))
void StoreRow(const float* values, int64_t count, DType type, void* out);

}  // namespace toroid
