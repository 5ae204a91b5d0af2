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
  for (int64_t begin = 0; learned_positions && begin < t; begin += pass.token_block) {
    const int64_t b = std::min(pass.token_block, t - begin);
    Arena::Mark block_mark(pass.scratch);
    Tensor rows_bD = pass.scratch.New("positions", pass.ops.dtype(), {b, x_uD.cols()});
    pass.ops.Embed(pass.s, pass.positions_t.Rows(begin, b), positions_cD, positions.begin, rows_bD);
    pass.ops.Add(pass.s, y_tD.Rows(begin, b), rows_bD);
  }
  // Rows of ids and positions that other ranks hold are zero here: a sum over v is owed.
  const Tensor reduced = pass.residual.Reduce(pass.tensor, pass.s, pass.Owed(y_tD), x_uD);
  if (reduced.data != x_uD.data) pass.ops.Copy(pass.s, reduced, x_uD);
  pass.Drop(0, DropoutSite::kEmbedding, x_uD);
}

void ModelEnds::EmbedBackward(const Pass& pass, Tensor ids_t, Tensor dx_uD,
                              const ModelEnds& d) const {
  if (!d.embedding_vD.given() && !d.positions_cD.given()) return;
  const ResidualLayout& residual = pass.residual;
  Arena::Mark mark(pass.scratch);
  Tensor dy_tD = pass.Long("dy", pass.ops.dtype(), {residual.padded(), dx_uD.cols()});
  // x_uD = drop(ReduceScatter(y_tD))
  pass.ops.Copy(pass.s, dx_uD, residual.Share(dy_tD));
  pass.Drop(0, DropoutSite::kEmbedding, residual.Share(dy_tD));
  residual.Gather(pass.tensor, pass.s, dy_tD);
  const Tensor tokens_tD = dy_tD.Rows(0, residual.tokens());
  // y_tD = rows of E + rows of the positions
  if (d.positions_cD.given()) {
    pass.ops.EmbedBackward(pass.s, pass.positions_t, positions.begin, tokens_tD, d.positions_cD);
  }
  if (d.embedding_vD.given()) {
    pass.ops.EmbedBackward(pass.s, ids_t, vocab.begin, tokens_tD, d.embedding_vD);
  }
}

void ModelEnds::FinalNorm(const Pass& pass, Tensor x_tD, Tensor a_tD) const {
  final_norm.Forward(pass.ops, pass.s, x_tD, a_tD);
  if (logit_scale != 1) pass.ops.Scale(pass.s, a_tD, logit_scale);
}

void ModelEnds::FinalNormBackward(const Pass& pass, Tensor x_tD, Tensor da_tD, Tensor dx_tD,
                                  const ModelEnds& d) const {
  // a = logit_scale norm(x)
  if (logit_scale != 1) pass.ops.Scale(pass.s, da_tD, logit_scale);
  final_norm.Backward(pass.ops, pass.s, x_tD, da_tD, dx_tD, d.final_norm);
}

void ModelEnds::TileLogits(const Pass& pass, Tensor h_nD, int64_t begin, Tensor logits) const {
  pass.ops.MatMul(pass.s, h_nD, head_vD.Rows(begin, logits.cols()), Tensor(), logits);
}

void ModelEnds::TileLogitsBackward(const Pass& pass, Tensor h_nD, int64_t begin, Tensor dlogits,
                                   bool add_dh, Tensor dh_nD, const ModelEnds& d) const {
  // logits = h head^T
  const int64_t count = dlogits.cols();
  const Tensor dhead = d.head_vD.given() ? d.head_vD.Rows(begin, count) : Tensor();
  pass.ops.MatMulBackward(pass.s, h_nD, head_vD.Rows(begin, count), dlogits, add_dh, dh_nD, dhead,
                          Tensor());
}

void ModelEnds::Logits(const Pass& pass, Tensor h_nD, Tensor logits_snc) const {
  const int64_t n = h_nD.rows(), c = vocab_padded, v = vocab.size();
  Tensor shards = logits_snc.Reshape({pass.tensor.size() * n, c});
  Tensor own = shards.Rows(pass.tensor.rank() * n, n);
  if (v > 0) TileLogits(pass, h_nD, 0, own.Cols(0, v));
  pass.tensor.AllGather(pass.s, own, shards);
}

Tensor ModelEnds::NewStatistics(const Pass& pass, int64_t n) const {
  Tensor parts =
      pass.scratch.New("vocabulary statistics", DType::kF64, {pass.tensor.size() * n, 3});
  const Tensor own = parts.Rows(pass.tensor.rank() * n, n);
  pass.ops.Fill(pass.s, own, -std::numeric_limits<double>::infinity());
  pass.ops.Fill(pass.s, own.Cols(1, 1), 0.0);
  return parts;
}

void ModelEnds::MergeStatistics(const Pass& pass, Tensor parts, Tensor log_p_n,
                                Tensor log_z_n) const {
  const int64_t ranks = pass.tensor.size(), n = log_p_n.rows();
  pass.tensor.AllGather(pass.s, parts.Rows(pass.tensor.rank() * n, n), parts);
  pass.ops.VocabMerge(pass.s, parts.Reshape({ranks, n, 3}), log_p_n, log_z_n);
}

void ModelEnds::Head(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_p_n,
                     Tensor log_z_n) const {
  const int64_t n = h_nD.rows(), v = vocab.size();
  Arena::Mark mark(pass.scratch);
  const Tensor parts = NewStatistics(pass, n);
  for (int64_t begin = 0; begin < v; begin += kVocabTile) {
    const int64_t tile = std::min(kVocabTile, v - begin);
    Arena::Mark tile_mark(pass.scratch);
    Tensor logits = pass.scratch.New("logits", pass.ops.dtype(), {n, tile});
    TileLogits(pass, h_nD, begin, logits);
    pass.ops.VocabStatistics(pass.s, logits, vocab.begin + begin, labels_n,
                             parts.Rows(pass.tensor.rank() * n, n));
  }
  MergeStatistics(pass, parts, log_p_n, log_z_n);
}

Partial ModelEnds::HeadBackward(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_z_n,
                                Tensor d_log_p_n, Tensor d_log_z_n, Tensor dh_nD,
                                const ModelEnds& d) const {
  const int64_t n = h_nD.rows(), v = vocab.size();
  pass.ops.Fill(pass.s, dh_nD, 0.0);
  for (int64_t begin = 0; begin < v; begin += kVocabTile) {
    const int64_t tile = std::min(kVocabTile, v - begin);
    Arena::Mark tile_mark(pass.scratch);
    Tensor logits = pass.scratch.New("logits", pass.ops.dtype(), {n, tile});
    TileLogits(pass, h_nD, begin, logits);
    // log p, log Z = statistics of logits, over all tiles and ranks
    pass.ops.VocabBackward(pass.s, logits, vocab.begin + begin, labels_n, log_z_n, d_log_p_n,
                           d_log_z_n, logits);
    TileLogitsBackward(pass, h_nD, begin, logits, /*add_dh=*/true, dh_nD, d);
  }
  return Partial(dh_nD);
}

}  // namespace toroid
