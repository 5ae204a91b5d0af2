// Pass: what one pass over tokens is given besides the weights. Prefill, decode and score run the
// same Block lines with different passes.
#pragma once

#include <algorithm>
#include <functional>

#include "core/arena.h"
#include "core/backend.h"
#include "core/communicator.h"
#include "core/model/attention_spec.h"

namespace toroid {

// Named points of a block. Shapes: attention_in, mlp_in [t, D]; query, attention_out [t, h, K];
// key, value [t, g, K]; mlp_out, residual [u, D] (this rank's rows, padding included).
// Of Backward, in its order, the loss's gradient by: residual, mlp_in, attention_in [u, D] (that of
// mlp_out is residual's); attention_out, query [t, h, K]; key, value [t, g, K], of this rank's
// query heads: over `tensor` they add up. Recomputation announces its points again.
enum class Tap {
  kAttentionIn,
  kQuery,
  kKey,
  kValue,
  kAttentionOut,
  kMlpIn,
  kMlpOut,
  kResidual,
  kDResidual,
  kDMlpIn,
  kDAttentionOut,
  kDQuery,
  kDKey,
  kDValue,
  kDAttentionIn
};
const char* TapName(Tap tap);

// Sees a point's tensor once it is enqueued on the pass's stream; may overwrite it.
using Observer = std::function<void(int64_t layer, Tap tap, Tensor x)>;

// How the residual stream lies over the axis `tensor`. With at least as many tokens as ranks it is
// split by token (x_uD: rank i holds rows [i u, (i + 1) u) of the t tokens, padded with zeros to u
// = ceil(t / n)): its norm is local and sums are ReduceScatter. With fewer (decode) it is whole and
// sums are AllReduce, unless it is asked to be always split (training: backward swaps AllGather and
// ReduceScatter, and gradients of gains are each rank's own rows' everywhere).
class ResidualLayout {
 public:
  ResidualLayout(int64_t tokens, int64_t rank, int64_t ranks, bool always_split = false)
      : tokens_(tokens),
        rank_(rank),
        whole_(tokens < ranks && !always_split),
        share_(whole_ ? tokens : (tokens + ranks - 1) / ranks),
        ranks_(ranks) {}

  int64_t tokens() const { return tokens_; }  // t
  int64_t share() const { return share_; }    // u, padding included
  int64_t padded() const {
    return whole_ ? tokens_ : share_ * ranks_;
  }  // rows of a gathered tensor
  bool whole() const { return whole_; }
  // Rows of the share that are tokens, the others pad.
  int64_t valid() const { return std::clamp<int64_t>(tokens_ - begin(), 0, share_); }
  // First of the t tokens in this rank's share.
  int64_t begin() const { return whole_ ? 0 : rank_ * share_; }
  // This rank's rows of a gathered tensor [padded, ..].
  Tensor Share(Tensor gathered) const { return gathered.Rows(begin(), share_); }

  // Fills `gathered` [padded, ..] from every rank's Share of it.
  void Gather(Communicator& tensor, Stream s, Tensor gathered) const {
    if (!whole_) tensor.AllGather(s, Share(gathered), gathered);
  }
  // Pays the sum that y [padded, ..] owes; its rows from t on must be zero. Returns this rank's
  // share, which `share` (rows of y's own memory, or others) receives where the residual is split.
  Tensor Reduce(Communicator& tensor, Stream s, Partial y, Tensor share) const {
    return whole_ ? tensor.AllReduce(s, y) : tensor.ReduceScatter(s, y, share);
  }

 private:
  int64_t tokens_, rank_;
  bool whole_;
  int64_t share_, ranks_;
};

// Dropout of what is added to the residual, in training. The mask is a function of (seed, step,
// layer, site) and of the token's number alone: the same on every mesh, and in recomputation.
struct PassDropout {
  double rate = 0;  // 0: none, and the rest is not looked at
  uint64_t seed = 0;
  Tensor step_1;  // i64 [1]
  Tensor
      tokens_u;  // i64 [u]: number in the whole batch of each token of this rank's share; pads: 0
};
enum class DropoutSite { kEmbedding, kAttention, kMlp };  // a parallel block: its one sum is kMlp

struct Pass {
  Pass(Backend& backend, Stream stream, Arena& arena, Communicator& tensor_axis,
       ResidualLayout layout, Tensor positions, Tensor frequencies)
      : ops(backend),
        s(stream),
        scratch(arena),
        tensor(tensor_axis),
        residual(layout),
        positions_t(positions),
        inv_freq(frequencies),
        activation(backend.dtype()) {}

  Backend& ops;
  Stream s;
  Arena& scratch;
  Communicator& tensor;
  ResidualLayout residual;
  Tensor positions_t;  // i32, global position of each token
  Tensor inv_freq;     // f64 [K/2]
  double rope_scale = 1.0;
  // Of what goes into products and comes out of them, but sums: ops.dtype() or ops.activation().
  DType activation;
  DType kv_dtype = DType::kF32;  // in which K and V travel and are cached
  int64_t kv_capacity = 0;       // tokens that the KV buffer has room for, if more than t
  int64_t token_block = 512;     // rows of a feed-forward block
  // Attention of this pass: writes k and v where they belong and attends, o [t, h, K] and lse [t,
  // h] fresh on entry. k, v: [t, g, K] of kv_dtype, halves of one packed buffer kv [2 t, g, K].
  std::function<void(int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                     Tensor o_thK, Tensor lse_th)>
      attend;
  // Its backward, in training: adds to dq and dkv (K's gradient, then V's; dtype()), which lies in
  // memory with room for 2 kv_capacity tokens. kv as above; it travels and is overwritten.
  std::function<void(int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                     Tensor o_thK, Tensor lse_th, Tensor do_thK, Tensor dq_thK, Tensor dkv_2tgK)>
      attend_backward;
  PassDropout dropout;
  const Observer* observer = nullptr;

  void Announce(int64_t layer, Tap tap, Tensor x) const {
    if (observer != nullptr) (*observer)(layer, tap, x);
  }
  // Drops elements of x [u, D] in place; of its gradient by the same call.
  void Drop(int64_t layer, DropoutSite site, Tensor x_uD) const {
    if (dropout.rate == 0) return;
    const DropoutSpec spec = {dropout.rate, dropout.seed, layer, int64_t(site), x_uD.cols()};
    ops.Dropout(s, spec, dropout.step_1, dropout.tokens_u, 0, x_uD, x_uD);
  }
  // y [padded, ..] owes a sum over `tensor`. The rows that only pad its equal counts are zeroed, so
  // that sums and later norms stay zero.
  Partial Owed(Tensor y_tD) const {
    const int64_t t = residual.tokens();
    if (y_tD.rows() > t) ops.Fill(s, y_tD.Rows(t, y_tD.rows() - t), 0.0);
    return Partial(y_tD);
  }
  // Scratch as long as this rank's tokens (core/arena.h).
  Tensor Long(const char* name, DType type, std::initializer_list<int64_t> shape) const {
    return scratch.New(name, type, shape, Arena::Length::kTokens);
  }
};

}  // namespace toroid
