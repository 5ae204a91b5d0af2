// Products of few rows with stored weights on a CUDA device.
#pragma once

#include "kernels/matmul.h"

namespace toroid {

// out = x w^T + bias for m <= kMatVecRows, as MatMul. Every weight is read once, at its stored
// size.
void MatVec(CudaStream s, const MatMulArgs<float>& args);

// x [m, n] += bias [n], f32 or f64.
void AddBias(CudaStream s, DType type, void* x, int64_t stride, int64_t m, int64_t n,
             DType bias_type, const void* bias);

}  // namespace toroid
