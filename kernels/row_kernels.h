// Inner loops of the ops that work along rows, one table per instruction set. Strides are 1.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace toroid {

struct RowKernels {
  // As DecodeRow, for the types of IsStoredWeight.
  void (*decode)(DType type, const void* row, int64_t begin, int64_t count, float* out);
  // out[r * out_stride + i] = x_r . w_i for rows [0, m) of x, m <= kMatVecRows, and rows [0, n) of
  // w, which lie w_bytes apart.
  void (*matvec)(DType type, const float* x, int64_t x_stride, int64_t m, const void* w,
                 int64_t w_bytes, int64_t n, int64_t k, float* out, int64_t out_stride);
  // One row of x, with work done once for all rows of w. Both null where matvec is as fast; else
  // for the types of 4 bits: `prepare` writes PreparedBytes(k) bytes that `matvec_prepared` reads.
  void (*prepare)(DType type, const float* x, int64_t k, void* prepared);
  void (*matvec_prepared)(DType type, const void* prepared, const void* w, int64_t w_bytes,
                          int64_t n, int64_t k, float* out);
  // out = gate / (1 + e^-gate) * up
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  // With s = 1 / (1 + e^-gate): dgate = dout up s (1 + gate (1 - s)), dup = dout gate s.
  void (*swiglu_backward)(const float* gate, const float* up, const float* dout, float* dgate,
                          float* dup, int64_t n);
  // As kernels/gelu.h.
  void (*gelu)(const float* x, float* out, int64_t n);
  void (*gelu_backward)(const float* x, const float* dout, float* dx, int64_t n);
  float (*max)(const float* x, int64_t n);
  // out = factor e^(x - shift)
  void (*exp_scaled)(const float* x, float shift, float factor, float* out, int64_t n);
  // Sum of e^(x - max): lanes of float over pieces of 1024, their totals in double.
  double (*exp_sum)(const float* x, float max, int64_t n);
  float (*sum_squares)(const float* x, int64_t n);
  // cosine[i], sine[i] of the double position * inv_freq[i], times scale.
  void (*rotation)(double position, const double* inv_freq, double scale, int64_t n, float* cosine,
                   float* sine);
};

constexpr int64_t PreparedBytes(int64_t k) { return (k + k / 16) * 4; }

const RowKernels& RowKernelsAvx2();
const RowKernels& RowKernelsAvx512();
// The table of CurrentIsa().
const RowKernels& CurrentRowKernels();

}  // namespace toroid
