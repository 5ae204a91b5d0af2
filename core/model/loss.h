// The loss of training and its gradient, from the residual after the last block and back to it.
//
//   loss = sum_i weight_i (-log p_i + zeta (log Z_i)^2)
//
// Cross-entropy with the z-loss of PaLM (Chowdhery et al. 2022, section 5: zeta = 1e-4). Weights
// are known before the pass, so each block of tokens makes its logits [block, v] once: statistics,
// one small AllGather over `tensor`, gradient in their place, dh and dE. The logits of all tokens
// never exist; a block is as many rows as the backend's token_block() has room for: each block
// reads all of the head and of its gradient.
#pragma once

#include "core/model/ends.h"

namespace toroid {

struct LossTargets {
  Tensor labels_t;   // i32 [t], negative: no loss
  Tensor weights_t;  // f64 [t]
  double zeta = 0;
};

// x [u, D] -> log p and log Z of every token of this rank (f64 [t], the same on all ranks of
// `tensor`; log p is -inf without a label) and dx [u, D]; adds to d's head and final norm.
// REQUIRES: a residual that is always split; dx is not x.
void CrossEntropy(const Pass& pass, const ModelEnds& ends, const LossTargets& targets, Tensor x_uD,
                  Tensor log_p_t, Tensor log_z_t, Tensor dx_uD, const ModelEnds& d);

// Rows of a block of logits.
int64_t LossBlock(const Pass& pass, const ModelEnds& ends);

}  // namespace toroid
