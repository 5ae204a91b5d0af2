#include "core/model/ends.h"

#include <algorithm>
#include <limits>

namespace toroid {
namespace {

constexpr int64_t kVocabTile = 8192;  // columns of a tile of logits

}  // namespace

void ModelEnds::Embed(const Pass& pass, Tensor ids_t, Tensor x_uD) const {
  const int64_t t = pass.residual.tokens();
  Arena::Mark mark(pass.scratch);
  Tensor y_tD = pass.Long("y", pass.ops.dtype(), {pass.residual.padded(), x_uD.cols()});
  pass.ops.Embed(pass.s, ids_t, embedding_vD, vocab.begin, y_tD.Rows(0, t));
  if (y_tD.rows() > t) pass.ops.Fill(pass.s, y_tD.Rows(t, y_tD.rows() - t), 0.0);
  // Rows of ids that other ranks hold are zero here: a sum over v is owed.
  const Tensor reduced = pass.residual.Reduce(pass.tensor, pass.s, Partial(y_tD), x_uD);
  if (reduced.data != x_uD.data) pass.ops.Copy(pass.s, reduced, x_uD);
}

void ModelEnds::FinalNorm(const Pass& pass, Tensor x_tD, Tensor a_tD) const {
  pass.ops.RmsNorm(pass.s, x_tD, final_norm_D, norm_epsilon, a_tD);
}

void ModelEnds::Logits(const Pass& pass, Tensor h_nD, Tensor logits_snc) const {
  const int64_t n = h_nD.rows(), c = vocab_padded, v = vocab.size();
  const int64_t rank = pass.tensor.rank();
  Tensor shards = logits_snc.Reshape({pass.tensor.size() * n, c});
  Tensor own = shards.Rows(rank * n, n);
  if (v > 0) pass.ops.MatMul(pass.s, h_nD, head_vD, Tensor(), own.Cols(0, v));
  pass.tensor.AllGather(pass.s, own, shards);
}

void ModelEnds::Head(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_p_n,
                     Tensor log_z_n) const {
  const int64_t n = h_nD.rows(), v = vocab.size(), ranks = pass.tensor.size();
  Arena::Mark mark(pass.scratch);
  Tensor parts = pass.scratch.New("vocabulary statistics", DType::kF64, {ranks * n, 3});
  Tensor own = parts.Rows(pass.tensor.rank() * n, n);
  pass.ops.Fill(pass.s, own, -std::numeric_limits<double>::infinity());
  pass.ops.Fill(pass.s, own.Cols(1, 1), 0.0);
  for (int64_t begin = 0; begin < v; begin += kVocabTile) {
    const int64_t tile = std::min(kVocabTile, v - begin);
    Arena::Mark tile_mark(pass.scratch);
    Tensor logits = pass.scratch.New("logits", pass.ops.dtype(), {n, tile});
    pass.ops.MatMul(pass.s, h_nD, head_vD.Rows(begin, tile), Tensor(), logits);
    pass.ops.VocabStatistics(pass.s, logits, vocab.begin + begin, labels_n, own);
  }
  pass.tensor.AllGather(pass.s, own, parts);
  pass.ops.VocabMerge(pass.s, parts.Reshape({ranks, n, 3}), log_p_n, log_z_n);
}

}  // namespace toroid
