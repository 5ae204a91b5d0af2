// Decodes stored weights, every type of kernels/dtype.h that holds numbers, element by element.
// Plain code: the reference of the vector kernels, and the path of types that have none.
//
//   q8_0: d q        q4_0: d (q - 8)     q4_1: d q + m      q5_0: d (q - 16)   q5_1: d q + m
//   q4_k, q5_k: d scale q - d_min min    q6_k: d scale (q - 32)
//
// with block layouts as in the GGUF v3 description. In double every value is exact; in float the
// operations are those of Python's gguf.quants, one after the other. A row needs no alignment.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"

namespace toroid {

// True for the types that matrix products and embeddings read as stored.
constexpr bool IsStoredWeight(DType type) {
  return type == DType::kF32 || type == DType::kF64 || type == DType::kF16 ||
         type == DType::kBF16 || type == DType::kQ8_0 || type == DType::kQ4_0 ||
         type == DType::kQ4_1;
}

// out[i] = element begin + i of the row, i < count. begin and count are multiples of the block.
void DecodeRow(DType type, const void* row, int64_t begin, int64_t count, float* out);
void DecodeRow(DType type, const void* row, int64_t begin, int64_t count, double* out);

// On a CUDA device: n rows of k weights, row_bytes apart, of a type of IsStoredWeight, to f32 or
// bf16. Each row is written up to the next multiple of 8, with zeros behind k.
void DecodeRows(CudaStream s, DType type, const void* rows, int64_t row_bytes, int64_t n, int64_t k,
                DType out_type, void* out, int64_t out_stride);

}  // namespace toroid
