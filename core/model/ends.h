// ModelEnds: what lies before the first block and behind the last one, for one rank, as maths.
//
//   x_uD = Embed(ids)   ..blocks..   h = FinalNorm(x);  Head(h) -> (log p, log Z), or Logits(h)
//   logits = h E^T (or another head's);  h = logit_scale norm(x)
//
// Vocabulary-parallel over `tensor`: each rank holds rows of E (and of the output head), so Embed
// owes a sum and Head merges (max, sum of exp, label's logit) of the shards. Logits exist only as
// tiles of [block, vocab tile], or for single rows.
#pragma once

#include "core/model/norm.h"
#include "core/model/params.h"
#include "core/model/pass.h"

namespace toroid {

// Bound to tensors that somebody else owns (core/model/bind.h). What a caller does not use may be
// empty: in training the embedding and the final group are gathered at different times.
struct ModelEnds {
  Tensor embedding_vD, head_vD;  // tied: head is embedding
  Tensor positions_cD;           // learned positions, or empty: this rank's rows
  Norm final_norm;
  double logit_scale = 1.0;
  Range vocab;               // this rank's v
  int64_t vocab_padded = 0;  // c = ceil(V / tensor)
  Range positions;           // this rank's learned positions
  bool learned_positions = false;

  // x [u, D] = rows of E, plus those of pass.positions_t where positions are learned. ids: i32 [t].
  void Embed(const Pass& pass, Tensor ids_t, Tensor x_uD) const;
  // a [t, D] = logit_scale final_norm(x).
  void FinalNorm(const Pass& pass, Tensor x_tD, Tensor a_tD) const;
  // Logits of all rows: h [n, D] -> [tensor, n, c]: shard i holds ids [i c, min(V, (i + 1) c)),
  // what lies beyond is undefined.
  void Logits(const Pass& pass, Tensor h_nD, Tensor logits_snc) const;
  // log p of labels (i32 [n]; an id outside the vocabulary gives -inf) and log Z of each row, f64
  // [n].
  void Head(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_p_n, Tensor log_z_n) const;

  // --- gradients: `d` is bound to tensors of them, which are added to; an empty one is not wanted
  void EmbedBackward(const Pass& pass, Tensor ids_t, Tensor dx_uD, const ModelEnds& d) const;
  // da is overwritten; dx may be da.
  void FinalNormBackward(const Pass& pass, Tensor x_tD, Tensor da_tD, Tensor dx_tD,
                         const ModelEnds& d) const;
  // From Head's log Z, d log p and d log Z, f64 [n]: this rank's part of dh, in dh [n, D] (it
  // contracts over v). Logits are computed again, tile by tile; loss.h computes them once.
  Partial HeadBackward(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_z_n,
                       Tensor d_log_p_n, Tensor d_log_z_n, Tensor dh_nD, const ModelEnds& d) const;

  // --- what Head and the loss are made of
  // logits [n, count] of this rank's rows [begin, +count) of the head, and the backward: dh is
  // written, or added to with add_dh.
  void TileLogits(const Pass& pass, Tensor h_nD, int64_t begin, Tensor logits) const;
  void TileLogitsBackward(const Pass& pass, Tensor h_nD, int64_t begin, Tensor dlogits, bool add_dh,
                          Tensor dh_nD, const ModelEnds& d) const;
  // Statistics of n rows of all ranks, f64 [tensor n, 3] in scratch, this rank's rows fresh; and
  // their merge.
  Tensor NewStatistics(const Pass& pass, int64_t n) const;
  void MergeStatistics(const Pass& pass, Tensor parts, Tensor log_p_n, Tensor log_z_n) const;
};

}  // namespace toroid
