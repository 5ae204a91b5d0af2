// Block: one layer of one rank, written as maths (core/tensor.h has the letters).
//
//   x += sum_tensor  Wo Attention(norm1(x))          Llama family: serial, two sums per layer
//   x += sum_tensor  W2 (silu(W1 a) * W3 a),  a = norm2(x)
//
// Columns of Wq, Wk, Wv, W1, W3 and rows of Wo, W2 are split over `tensor`: Wo contracts over h and
// W2 over f, so both owe a reduction. The feed-forward runs in blocks of tokens (Blockwise Parallel
// Transformer, Liu & Abbeel 2023): its hidden [block, f] never exists for the whole text. The
// number of collectives does not depend on the number of blocks.
#pragma once

#include "core/model/linear.h"
#include "core/model/pass.h"

namespace toroid {

struct Attention {
  Linear q, k, v, o;
  Tensor q_norm_K, k_norm_K;  // gains of Qwen3's per-head norm, else empty
  int64_t query_heads = 0, kv_heads = 0, head_dim = 0;  // h, g, K of this rank
  double norm_epsilon = 0;
  AttentionSpec spec;

  // This rank's part of Wo Attention(a), in y [padded, D] with rows from t on zero.
  Partial Forward(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD) const;
};

struct Mlp {
  Linear gate, up, down;  // W1, W3, W2

  // This rank's part of W2 (silu(W1 a) * W3 a), in y as above.
  Partial Forward(const Pass& pass, Tensor a_tD, Tensor y_tD) const;
};

struct Block {
  Tensor attention_norm_D, mlp_norm_D;
  double norm_epsilon = 0;
  Attention attention;
  Mlp mlp;

  // x [u, D] in place.
  void Forward(const Pass& pass, int64_t layer, Tensor x_uD) const;
};

}  // namespace toroid
