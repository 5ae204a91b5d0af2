// The float32 matrix product behind matmul.h: c [m, n] = (add ? c : 0) + a [m, k] b [k, n] + bias,
// with a and b as they lie or transposed, and b of any stored type.
//
// The sum over k is cut into pieces of kGemmDepth, which are added in their order. For each piece
// all workers copy b into panels in the pool's shared scratch, widened; then each takes blocks of
// rows, whose part of a it copies into panels of its own. The work is cut by shape alone: any
// number of threads gives the same bits, and a row's bits do not depend on the other rows.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;  // all >= 1
  const float* a = nullptr;
  int64_t a_stride = 0;
  bool a_turned = false;  // a lies as [k, m]
  DType b_type = DType::kF32;
  const void* b = nullptr;
  int64_t b_stride = 0;   // of quantised b: its columns
  bool b_turned = false;  // b lies as [n, k]
  bool add = false;
  const void* bias = nullptr;  // [n], f32 or f64, may be null
  DType bias_type = DType::kF32;
  float* c = nullptr;
  int64_t c_stride = 0;
};

inline constexpr int64_t kGemmDepth = 256;

void Gemm(ThreadPool& pool, const GemmArgs& args);

}  // namespace toroid
