// Products of few rows with stored weights on a CUDA device, and what stands before and behind them
// in a step of decoding, in one launch: out_i = norm(x) w_i^T + bias_i, then perhaps SwiGLU of two
// of them, or a sum with one. Everything that the ops would have written one by one is written.
//
// The norm's factor is a number per row, so it multiplies the sums: each warp adds up the squares
// of x beside its products. Results differ from those of the ops one by one by rounding.
#pragma once

#include "kernels/matmul.h"

namespace toroid {

struct FusedMatVecArgs {
  static constexpr int kMost = 3;
  int count = 0;  // products
  // Of one x, m <= kMatVecRows, k and w_type. x: of the norm, where there is one.
  MatMulArgs<float> products[kMost];
  const float* gain = nullptr;  // [k]; null: no norm
  double epsilon = 0;
  float* normed = nullptr;  // norm(x) [m, k]
  int64_t normed_stride = 0;
  // silu(out_0) out_1, of two products of equal n; null: no SwiGLU. May be out_0.
  float* hidden = nullptr;
  int64_t hidden_stride = 0;
  float* sum = nullptr;  // += out_0, of one product; null: none
  int64_t sum_stride = 0;
};

// True if such a product can be among them: k a multiple of 8; rows of x, and of w in f32, bf16 or
// f16, on 16 bytes, of w in q8_0, q4_0 or q4_1 on 4 bytes.
bool CanFuse(const MatMulArgs<float>& product);
// overlap: it may start, and fetch weights, before what stands before it on the stream has ended
// (compute capability 9.0). REQUIRES CanFuse of each, gain and normed on 16 bytes.
void FusedMatVec(CudaStream s, const FusedMatVecArgs& args, bool overlap);

}  // namespace toroid
