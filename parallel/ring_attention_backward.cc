// The backward of RingAttention::Attend.
#include <algorithm>

#include "parallel/ring_attention.h"

namespace toroid {

// Q and dQ stay; K, V and the sum of their gradients travel. In round i this rank adds its queries'
// share for the block of rank (me - shift_i) to a fresh buffer, while comm_s brings the KV of round
// i + 1 and what the ranks before us have summed up for the block of round i. Both are added when
// the tiles are done, and the sum goes on in round i + 1; after the last round it goes home.
void RingAttention::Backward(int64_t layer, const AttentionSpec& spec, Tensor q_thK,
                             Tensor positions_t, Tensor kv_2tgK, Tensor kv_index, Tensor o_thK,
                             Tensor lse_th, Tensor do_thK, Tensor dq_thK, Tensor dkv_2tgK) {
  const std::vector<Round>& rounds = Schedule(spec);
  const int64_t t = q_thK.rows(), h = q_thK.dims[1], g = kv_2tgK.dims[1], K = kv_2tgK.dims[2];
  const int64_t most = layout_.max_count(mesh_.data_rank());
  const int64_t me = mesh_.ring_rank(), ring = mesh_.ring().size();
  const bool travels = rounds.size() > 1;
  Arena::Mark mark(scratch_);
  // Whether anything travels hangs on where documents end; the room does not, so that what one
  // batch needed is enough for any other of the same lengths.
  const auto buffer = [&](const char* name, DType type) {
    return scratch_.New(name, type, {ring > 1 ? 2 * most : 0, g, K}, Arena::Length::kTokens);
  };
  const auto block = [&](const Tensor& memory, int64_t tokens) {
    return Tensor(memory.dtype, {2 * tokens, g, K}, memory.data);
  };
  Tensor delta_th = scratch_.New("delta", o_thK.dtype, {t, h}, Arena::Length::kTokens);
  Tensor kv_positions = scratch_.New("KV positions", DType::kI32, {most}, Arena::Length::kTokens);
  Tensor kv_in = buffer("incoming KV", kv_2tgK.dtype);
  const Tensor dkv_in = buffer("incoming dKV", dkv_2tgK.dtype);
  Tensor dkv_other = buffer("travelling dKV", dkv_2tgK.dtype);
  buffer_bytes_ = std::max(buffer_bytes_, kv_in.bytes() + dkv_in.bytes() + dkv_other.bytes());
  ops_.AttentionDelta(s_, o_thK, do_thK, delta_th);

  Tensor kv = kv_2tgK, dkv = dkv_2tgK;  // of the block held
  for (size_t i = 0; i < rounds.size(); ++i) {
    const Round& round = rounds[i];
    on_round_(layer, int64_t(i), int64_t(rounds.size()));
    const int64_t tokens = kv.rows() / 2;
    const Tensor kv_arriving = block(kv_in, round.recv_tokens), sum = block(dkv_in, tokens);
    // comm_s waits for: kv written, the sum of the last round written, and s done reading what is
    // now kv_in and dkv_in.
    if (travels) ops_.Fork(s_, comm_s_);
    if (round.moves) {
      mesh_.ring().SendRecv(comm_s_, kv, int(round.to), kv_arriving, int(round.from));
    }
    if (i > 0) {
      const Round& last = rounds[i - 1];
      mesh_.ring().SendRecv(comm_s_, dkv, int(last.to), sum, int(last.from));
      const Tensor sent = dkv;
      dkv = block(dkv_other, tokens);
      dkv_other = sent;
      ops_.Fill(s_, dkv, 0.0);
    }
    if (!round.tiles.empty()) {
      const KvView view = View(kv, round.kv_of, positions_t, kv_positions);
      for (const Tile& tile : round.tiles) {
        ops_.AttendTileBackward(s_, q_thK, positions_t, view, kv_index, spec, tile, do_thK, lse_th,
                                delta_th, dq_thK, dkv.Rows(0, tokens), dkv.Rows(tokens, tokens));
      }
    }
    // s waits for: kv_in and dkv_in arrived, kv and the last sum sent.
    if (travels) ops_.Join(s_, comm_s_);
    if (i > 0) ops_.Add(s_, dkv, sum);
    if (round.moves) {
      kv_in = kv;
      kv = kv_arriving;
    }
  }
  if (!travels) return;
  // Home from wherever it is: ours lies on the rank that held our block in the last round.
  const int64_t shift = (me + ring - rounds.back().kv_of) % ring;
  const Tensor home = block(dkv_in, t);
  ops_.Fork(s_, comm_s_);  // comm_s waits for: the last sum written, dkv_in read
  mesh_.ring().SendRecv(comm_s_, dkv, int(rounds.back().kv_of), home, int((me + shift) % ring));
  ops_.Join(s_, comm_s_);  // s waits for: ours arrived, the other's sent
  ops_.Copy(s_, home, dkv_2tgK);
}

}  // namespace toroid
