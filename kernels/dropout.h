// Dropout (Srivastava et al. 2014): out = x / (1 - rate) where an element is kept, 0 where it is
// dropped, each with probability `rate` for itself. Its own backward: of dout, with the same
// arguments.
//
// Whether an element is kept is a function of (seed, step, layer, site) and of its place (row, col)
// in the whole tensor, never of which rank holds it or in which order: the same on every mesh.
// Element e = row * width + col takes word e mod 4 of Philox(seed; e / 4, step | layer | site) and
// is dropped if word / 2^32 < rate.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

struct DropoutSpec {
  double rate = 0;    // in [0, 1)
  uint64_t seed = 0;  // of the run
  int64_t layer = 0;  // in [0, 2^16)
  int64_t site = 0;   // which of a layer's dropouts, in [0, 2^8)
  int64_t width = 0;  // columns of the whole tensor, over all ranks
};

// [rows, cols], strides in elements; out may be x. step: in [0, 2^40). row_ids [rows]: row of the
// whole tensor that each row is, >= 0; this rank's columns begin at col_begin. Rows times width is
// below 2^63.
void Dropout(ThreadPool& pool, const DropoutSpec& spec, int64_t step, const int64_t* row_ids,
             int64_t col_begin, const float* x, int64_t x_stride, float* out, int64_t out_stride,
             int64_t rows, int64_t cols);
void Dropout(ThreadPool& pool, const DropoutSpec& spec, int64_t step, const int64_t* row_ids,
             int64_t col_begin, const double* x, int64_t x_stride, double* out, int64_t out_stride,
             int64_t rows, int64_t cols);

// On a CUDA device: x and out are of one type, f32 or bf16. step: device memory.
void Dropout(CudaStream s, const DropoutSpec& spec, const int64_t* step, const int64_t* row_ids,
             int64_t col_begin, DType type, const void* x, int64_t x_stride, void* out,
             int64_t out_stride, int64_t rows, int64_t cols);

}  // namespace toroid
