#include "core/model/loss.h"

#include <algorithm>

namespace toroid {
namespace {

constexpr int64_t kLogits = 1 << 15;  // numbers in a block of logits, for each row of token_block()

}  // namespace

int64_t LossBlock(const Pass& pass, const ModelEnds& ends) {
  const int64_t logits = kLogits * pass.ops.token_block();
  const int64_t rows = logits / std::max<int64_t>(ends.vocab_padded, 1);
  return std::clamp<int64_t>(rows, 1, pass.token_block);
}

void CrossEntropy(const Pass& pass, const ModelEnds& ends, const LossTargets& targets, Tensor x_uD,
                  Tensor log_p_t, Tensor log_z_t, Tensor dx_uD, const ModelEnds& d) {
  const ResidualLayout& residual = pass.residual;
  TOROID_CHECK(!residual.whole());
  const int64_t t = residual.tokens(), v = ends.vocab.size(), block = LossBlock(pass, ends);
  Backend& ops = pass.ops;
  Arena::Mark mark(pass.scratch);
  Tensor h_tD = pass.Long("a", pass.activation, {residual.padded(), x_uD.cols()});
  Tensor dh_tD = pass.Long("da", ops.dtype(), {residual.padded(), x_uD.cols()});
  ends.FinalNorm(pass, x_uD, residual.Share(h_tD));
  residual.Gather(pass.tensor, pass.s, h_tD);
  for (int64_t begin = 0; begin < t; begin += block) {
    const int64_t b = std::min(block, t - begin);
    const Tensor h_bD = h_tD.Rows(begin, b), labels_b = targets.labels_t.Rows(begin, b);
    const Tensor log_z_b = log_z_t.Rows(begin, b);
    Arena::Mark block_mark(pass.scratch);
    const Tensor parts = ends.NewStatistics(pass, b);
    Tensor d_log_p_b = pass.scratch.New("d log p", DType::kF64, {b});
    Tensor d_log_z_b = pass.scratch.New("d log Z", DType::kF64, {b});
    Tensor logits_bv = pass.scratch.New("logits", ops.dtype(), {b, v});
    ends.TileLogits(pass, h_bD, 0, logits_bv);
    ops.VocabStatistics(pass.s, logits_bv, ends.vocab.begin, labels_b,
                        parts.Rows(pass.tensor.rank() * b, b));
    ends.MergeStatistics(pass, parts, log_p_t.Rows(begin, b), log_z_b);
    // loss = sum weight (-log p + zeta log Z^2)
    ops.LossBackward(pass.s, labels_b, targets.weights_t.Rows(begin, b), targets.zeta, log_z_b,
                     d_log_p_b, d_log_z_b);
    // log p, log Z = merged statistics of logits
    const Tensor dlogits_bv = pass.activation == ops.dtype()
                                  ? logits_bv
                                  : pass.scratch.New("dlogits", pass.activation, {b, v});
    ops.VocabBackward(pass.s, logits_bv, ends.vocab.begin, labels_b, log_z_b, d_log_p_b, d_log_z_b,
                      dlogits_bv);
    // logits = h head^T: dh contracts over v
    ends.TileLogitsBackward(pass, h_bD, 0, dlogits_bv, /*add_dh=*/false, dh_tD.Rows(begin, b), d);
  }
  // h_tD = AllGather(h_uD)
  const Tensor dh_uD =
      residual.Reduce(pass.tensor, pass.s, pass.Owed(dh_tD), residual.Share(dh_tD));
  // h_uD = final_norm(x_uD)
  ends.FinalNormBackward(pass, x_uD, dh_uD, dx_uD, d);
}

}  // namespace toroid
