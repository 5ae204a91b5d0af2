// Attention over the axis `ring`. In prefill Q stays and K, V travel (Liu et al. 2310.01889); in
// decode every rank has the whole Q, attends to its own cache pages, and (O, LSE) are gathered and
// merged in ring order, so that all ranks hold the same bits. No KV moves after prefill.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "core/arena.h"
#include "core/backend.h"
#include "core/communicator.h"
#include "core/model/kv_cache.h"
#include "core/model/token_layout.h"
#include "parallel/mesh.h"

namespace toroid {

// Called before each round's work with (layer, round, rounds).
using RoundObserver = std::function<void(int64_t layer, int64_t round, int64_t rounds)>;

// Ring attention of one rank over the tokens of `layout`. Sent per layer by Attend: for each round
// kept but the last the block then held, 2 T_j g K elements.
class RingAttention {
 public:
  // comm_s: a communication stream; the exchange on it overlaps the attention on s.
  RingAttention(Backend& ops, Stream s, Stream comm_s, Arena& scratch, Mesh& mesh,
                const TokenLayout& layout, RoundObserver on_round, RoundsRule rounds = Rounds)
      : ops_(ops),
        s_(s),
        comm_s_(comm_s),
        scratch_(scratch),
        mesh_(mesh),
        layout_(layout),
        on_round_(std::move(on_round)),
        rounds_(std::move(rounds)) {}

  // q, o: [t, h, K]; lse: [t, h], a carry; positions_t: of this rank's tokens. kv: this rank's
  // packed K then V, [2 t, g, K], in memory with room for 2 max_count tokens: it travels and is
  // overwritten.
  void Attend(int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor positions_t,
              Tensor kv_2tgK, Tensor kv_index, Tensor o_thK, Tensor lse_th);

  // Its backward: K, V, dK and dV travel, Q and dQ stay. lse and o are Attend's results. Adds to dq
  // and dkv [2 t, g, K] (K's gradient, then V's; the backend's type); kv and dkv lie in memory with
  // room for 2 max_count tokens, kv is overwritten. Sent: for each round kept but the last the KV
  // block then held; for each round kept, unless it is the only one, the sum of gradients of that
  // round's block, after the last round straight home. Sums are taken in the order of rounds.
  void Backward(int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor positions_t,
                Tensor kv_2tgK, Tensor kv_index, Tensor o_thK, Tensor lse_th, Tensor do_thK,
                Tensor dq_thK, Tensor dkv_2tgK);

  // The schedule under this mask.
  const std::vector<Round>& Schedule(const AttentionSpec& spec);
  // The most that blocks which travel have taken of scratch so far.
  int64_t buffer_bytes() const { return buffer_bytes_; }

 private:
  // The block of ring rank `kv_of`, [2 tokens, g, K], as tiles read it; others' positions go to
  // `room`.
  KvView View(Tensor kv, int64_t kv_of, Tensor positions_t, Tensor room);

  Backend& ops_;
  Stream s_, comm_s_;
  Arena& scratch_;
  Mesh& mesh_;
  const TokenLayout& layout_;
  RoundObserver on_round_;
  RoundsRule rounds_;
  int64_t buffer_bytes_ = 0;
  std::map<std::pair<bool, int64_t>, std::vector<Round>> schedules_;  // by (causal, window)
};

// Decode: q [t, h, K], a token of each of t sequences, whole on every ring rank, against the cached
// keys of all ring ranks: `cached` gives those of a row's sequence on this one.
void DecodeAttention(Backend& ops, Stream s, Arena& scratch, Communicator& ring,
                     const AttentionSpec& spec, Tensor q_thK, Tensor positions_t,
                     const std::function<KvView(int64_t row)>& cached, Tensor kv_index,
                     Tensor o_thK, Tensor lse_th);

}  // namespace toroid
