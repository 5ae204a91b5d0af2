#include "parallel/ring_attention.h"

#include <algorithm>
#include <utility>

namespace toroid {

const std::vector<Round>& RingAttention::Schedule(const AttentionSpec& spec) {
  auto [entry, fresh] = schedules_.try_emplace({spec.causal, spec.window});
  if (fresh) entry->second = rounds_(layout_, spec, mesh_.data_rank(), mesh_.ring_rank());
  return entry->second;
}

KvView RingAttention::View(Tensor kv, int64_t kv_of, Tensor positions_t, Tensor room) {
  const int64_t tokens = kv.rows() / 2;
  KvView view;
  view.k = kv.Rows(0, tokens);
  view.v = kv.Rows(tokens, tokens);
  view.positions = positions_t;
  if (kv_of != mesh_.ring_rank()) {
    const std::vector<int32_t> positions = layout_.Positions(mesh_.data_rank(), kv_of);
    view.positions = room.Rows(0, tokens);
    ops_.Upload(s_, positions.data(), view.positions);
  }
  return view;
}

// Q stays; K and V travel: in round i we hold those of rank (me - shift_i). Partial softmaxes merge
// by their log-sum-exp, in fp32 (fp64 in proofs), so any order gives the same sum up to rounding.
void RingAttention::Attend(int64_t layer, const AttentionSpec& spec, Tensor q_thK,
                           Tensor positions_t, Tensor kv_2tgK, Tensor kv_index, Tensor o_thK,
                           Tensor lse_th) {
  const std::vector<Round>& rounds = Schedule(spec);
  const int64_t g = kv_2tgK.dims[1], K = kv_2tgK.dims[2];
  const int64_t most = layout_.max_count(mesh_.data_rank());
  Arena::Mark mark(scratch_);
  Tensor kv_in =
      scratch_.New("incoming KV", kv_2tgK.dtype, {2 * most, g, K}, Arena::Length::kTokens);
  Tensor kv_positions = scratch_.New("KV positions", DType::kI32, {most}, Arena::Length::kTokens);
  buffer_bytes_ = std::max(buffer_bytes_, kv_in.bytes());
  const auto block = [&](const Tensor& buffer, int64_t tokens) {
    return Tensor(buffer.dtype, {2 * tokens, g, K}, buffer.data);
  };

  Tensor kv = kv_2tgK;
  for (size_t i = 0; i < rounds.size(); ++i) {
    const Round& round = rounds[i];
    on_round_(layer, int64_t(i), int64_t(rounds.size()));
    const Tensor arriving = block(kv_in, round.recv_tokens);
    if (round.moves) {
      ops_.Fork(s_, comm_s_);  // comm_s waits for: kv written, and s done reading what is now kv_in
      mesh_.ring().SendRecv(comm_s_, kv, int(round.to), arriving,
                            int(round.from));  // overlaps the tiles
    }
    if (!round.tiles.empty()) {
      const KvView view = View(kv, round.kv_of, positions_t, kv_positions);
      for (const Tile& tile : round.tiles) {
        ops_.AttendTile(s_, q_thK, positions_t, view, kv_index, spec, tile, o_thK, lse_th);
      }
    }
    if (round.moves) {
      ops_.Join(s_, comm_s_);  // s waits for: kv_in arrived, kv sent
      kv_in = kv;
      kv = arriving;
    }
  }
}

void DecodeAttention(Backend& ops, Stream s, Arena& scratch, Communicator& ring,
                     const AttentionSpec& spec, Tensor q_thK, Tensor positions_t,
                     const std::function<KvView(int64_t row)>& cached, Tensor kv_index,
                     Tensor o_thK, Tensor lse_th) {
  const int64_t t = q_thK.rows(), h = q_thK.dims[1], K = q_thK.dims[2], R = ring.size();
  const auto attend = [&](const Tensor& o, const Tensor& lse) {
    for (int64_t row = 0; row < t; ++row) {
      const KvView view = cached(row);
      const Tile tile{row, 1, 0, view.positions.rows()};
      if (tile.k_count > 0) {
        ops.AttendTile(s, q_thK, positions_t, view, kv_index, spec, tile, o, lse);
      }
    }
  };
  if (R == 1) return attend(o_thK, lse_th);  // there is one part
  Arena::Mark mark(scratch);
  Tensor parts_o = scratch.New("gathered O", o_thK.dtype, {R * t, h, K});
  Tensor parts_lse = scratch.New("gathered LSE", lse_th.dtype, {R * t, h});
  const Tensor own_o = parts_o.Rows(ring.rank() * t, t);
  const Tensor own_lse = parts_lse.Rows(ring.rank() * t, t);
  ops.Copy(s, o_thK, own_o);  // the fresh carry
  ops.Copy(s, lse_th, own_lse);
  attend(own_o, own_lse);
  ring.AllGather(s, own_o, parts_o);
  ring.AllGather(s, own_lse, parts_lse);
  ops.AttentionMerge(s, parts_o.Reshape({R, t, h, K}), parts_lse.Reshape({R, t, h}), o_thK);
}

}  // namespace toroid
