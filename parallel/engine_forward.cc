// The engine's passes: prefill of a prompt as a ring, decode of a token of each row of a batch,
// rows of the result.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/status_macros.h"
#include "kernels/matmul.h"
#include "parallel/engine_sequence.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

// The keys of a batch's longest row rounded up, by an eighth at most: so many sizes of a decode
// step there are.
int64_t RoundedKeys(int64_t keys, int64_t most) {
  const int64_t step = std::max<int64_t>(256, int64_t(std::bit_floor(uint64_t(keys))) / 8);
  return std::min((keys + step - 1) / step * step, most);
}

}  // namespace

// Frequencies for texts that reach `limit`.
Engine::Rotation Engine::NewRotation(int64_t limit) {
  Rotation rotation;
  rotation.rope = Rope(config(), limit);
  rotation.inv_freq =
      scratch_->New("inverse frequencies", DType::kF64, {int64_t(rotation.rope.inv_freq.size())});
  ops_->Upload(s_, rotation.rope.inv_freq.data(), rotation.inv_freq);
  return rotation;
}

void Engine::Begin(Sequence& sequence) {
  if (!sequence.rotation.inv_freq.given()) sequence.rotation = NewRotation(sequence.limit);
  sequence.ring = std::make_unique<RingAttention>(
      *ops_, s_, comm_s_, *scratch_, *mesh_, sequence.layout,
      [this, &sequence](int64_t layer, int64_t round, int64_t rounds) {
        At("ring", layer, round);
        Report(sequence, double(layer) + double(round) / double(rounds));
      });
}

// Progress of prefill: layers done, of this model's, as a share of the prompt's tokens.
void Engine::Report(const Sequence& sequence, double layers) const {
  if (mesh_->rank() != 0) return;
  const int64_t total = int64_t(sequence.ids.size());
  sequence.events.on_progress(
      {sequence.phase, int64_t(double(total) * layers / double(model_->layers())), total});
}

int64_t Engine::OwnerOfNew(int64_t position) const {
  return TokenLayout::StripedOwner(load_.page_tokens, load_.mesh.ring, position);
}

Pass Engine::NewPass(const Rotation& rotation, int64_t tokens, Tensor positions_t) {
  Pass pass{*ops_,
            s_,
            *scratch_,
            mesh_->tensor(),
            ResidualLayout(tokens, mesh_->tensor_rank(), load_.mesh.tensor),
            positions_t,
            rotation.inv_freq};
  pass.rope_scale = rotation.rope.attention_scale;
  // Few rows are multiplied as they are (kernels/matmul.h).
  if (tokens > kMatVecRows) pass.activation = ops_->activation();
  pass.kv_dtype = cache_->shape().dtype;
  pass.token_block = ops_->token_block();
  return pass;
}

// Q stays, K and V travel. The result is x [u, D], this rank's share of the residual, in scratch.
absl::StatusOr<Tensor> Engine::Prefill(Sequence& sequence) {
  const int64_t data = mesh_->data_rank(), ring = mesh_->ring_rank();
  const std::vector<int32_t> positions = sequence.layout.Positions(data, ring);
  const int64_t t = int64_t(positions.size());
  std::vector<int32_t> ids(t);
  for (int64_t i = 0; i < t; ++i) ids[i] = sequence.ids[positions[i]];
  const auto upload = [&](const char* name, DType type, const void* host) {
    Tensor tensor = scratch_->New(name, type, {t}, Arena::Length::kTokens);
    ops_->Upload(s_, host, tensor);
    return tensor;
  };
  const Tensor ids_t = upload("ids", DType::kI32, ids.data());
  const Tensor positions_t = upload("positions", DType::kI32, positions.data());
  const bool cached = sequence.cached >= 0;
  Tensor slots_t;
  if (cached) slots_t = upload("slots", DType::kI64, cache_->Append(sequence.cached, t).data());

  Pass pass = NewPass(sequence.rotation, t, positions_t);
  pass.kv_capacity = sequence.layout.max_count(data);
  pass.observer = sequence.observer;
  pass.attend = [&](int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                    Tensor o_thK, Tensor lse_th) {
    if (cached) {
      ops_->KvWrite(s_, kv_2tgK.Rows(0, t), slots_t, cache_->keys(layer));
      ops_->KvWrite(s_, kv_2tgK.Rows(t, t), slots_t, cache_->values(layer));
    }
    sequence.ring->Attend(layer, spec, q_thK, positions_t, kv_2tgK, model_->kv_index(), o_thK,
                          lse_th);
  };
  Tensor x_uD = scratch_->New("x", ops_->dtype(), {pass.residual.share(), config().dim},
                              Arena::Length::kTokens);
  model_->ends().Embed(pass, ids_t, x_uD);
  for (int64_t layer = 0; layer < model_->layers(); ++layer) {
    At(sequence.phase, layer, 0);
    model_->ForwardLayer(pass, layer, x_uD);
    TOROID_RETURN_IF_ERROR(StepStatus(sequence.events));
    Report(sequence, double(layer + 1));
  }
  ring_bytes_ = std::max(ring_bytes_, sequence.ring->buffer_bytes());
  return x_uD;
}

// Every ring rank has the whole of each token: it computes Q itself, attends to its own pages of
// the row's sequence, and only the owner of the position writes K and V. Returns h [rows, D],
// normed; [0, D] on other data ranks.
//
// A device that keeps work gets batches and views of rounded sizes, so that few of them are kept.
// What differs from step to step lies in arrays: a row sees no more keys than its length says, and
// the rows that only round the batch have none and are written nowhere.
Tensor Engine::Decode(const Rotation& rotation, const StepRows& step) {
  const int64_t rows = int64_t(step.ids.size());
  const bool repeats = ops_->repeats() && mesh_->world().size() == 1;
  const int64_t padded = repeats ? int64_t(std::bit_ceil(uint64_t(rows))) : rows;
  const int64_t t = mesh_->data_rank() == 0 ? padded : 0;

  // In one upload: slots, ids, positions, lengths.
  std::vector<int32_t> words(5 * padded, 0);
  std::fill_n(words.begin(), 2 * padded, -1);  // two words of a slot
  std::memcpy(words.data(), step.slots.data(), rows * sizeof(int64_t));
  std::copy(step.ids.begin(), step.ids.end(), words.begin() + 2 * padded);
  std::copy(step.positions.begin(), step.positions.end(), words.begin() + 3 * padded);
  std::copy(step.lengths.begin(), step.lengths.end(), words.begin() + 4 * padded);
  const Tensor words_w = scratch_->New("decode step", DType::kI32, {5 * padded});
  ops_->Upload(s_, words.data(), words_w);
  const Tensor slots_t = Tensor(DType::kI64, {t}, words_w.data);
  const Tensor ids_t = words_w.Rows(2 * padded, t), positions_t = words_w.Rows(3 * padded, t);
  const Tensor lengths_t = words_w.Rows(4 * padded, t);

  const int64_t keys = RoundedKeys(*std::max_element(step.lengths.begin(), step.lengths.end()),
                                   cache_->row_tokens());
  Pass pass = NewPass(rotation, t, positions_t);
  pass.attend = [&](int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                    Tensor o_thK, Tensor lse_th) {
    ops_->KvWrite(s_, kv_2tgK.Rows(0, t), slots_t, cache_->keys(layer));
    ops_->KvWrite(s_, kv_2tgK.Rows(t, t), slots_t, cache_->values(layer));
    const auto cached = [&](int64_t row) {
      if (!repeats) return cache_->View(layer, row, step.lengths[row]);
      KvView view = cache_->View(layer, row, keys);
      view.length = lengths_t.Rows(row, 1);
      return view;
    };
    DecodeAttention(*ops_, s_, *scratch_, mesh_->ring(), spec, q_thK, positions_t, cached,
                    model_->kv_index(), o_thK, lse_th);
  };
  Tensor x_uD = scratch_->New("x", ops_->dtype(), {pass.residual.share(), config().dim},
                              Arena::Length::kTokens);
  Tensor h_tD = x_uD;  // the share is all of it
  if (pass.residual.share() < pass.residual.padded()) {
    h_tD = scratch_->New("h", ops_->dtype(), {pass.residual.padded(), config().dim},
                         Arena::Length::kTokens);
  }
  const auto forward = [&] {
    model_->ends().Embed(pass, ids_t, x_uD);
    for (int64_t layer = 0; layer < model_->layers(); ++layer) {
      model_->ForwardLayer(pass, layer, x_uD);
    }
    model_->ends().FinalNorm(pass, x_uD, pass.residual.Share(h_tD));
    if (h_tD.data != x_uD.data) pass.residual.Gather(mesh_->tensor(), s_, h_tD);
  };
  if (repeats) {
    ops_->Repeat(
        s_,
        {keys << 16 | padded, scratch_->used(), reinterpret_cast<intptr_t>(rotation.inv_freq.data),
         std::bit_cast<int64_t>(pass.rope_scale)},
        forward);
  } else {
    forward();
  }
  return h_tD.Rows(0, t == 0 ? 0 : rows);
}

// Rows of the residual at some positions of the prompt, normed, whole on every rank: [n, D]. Each
// row lies on one rank, the others add zeros.
Tensor Engine::GatherRows(const Sequence& sequence, Tensor x_uD,
                          const std::vector<int64_t>& positions) {
  const int64_t data = mesh_->data_rank(), ring = mesh_->ring_rank();
  const ResidualLayout residual(sequence.layout.count(data, ring), mesh_->tensor_rank(),
                                load_.mesh.tensor);
  const int64_t n = int64_t(positions.size());
  Tensor rows_nD = scratch_->New("rows", ops_->dtype(), {n, config().dim});
  ops_->Fill(s_, rows_nD, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t local = sequence.layout.LocalIndex(data, ring, 0, positions[i]);
    const int64_t row = local - residual.begin();
    const bool mine = residual.whole() ? mesh_->tensor_rank() == 0 : row < residual.valid();
    if (local >= 0 && row >= 0 && mine) ops_->Copy(s_, x_uD.Rows(row, 1), rows_nD.Rows(i, 1));
  }
  rows_nD = mesh_->world().AllReduce(s_, Partial(rows_nD));
  model_->ends().FinalNorm(NewPass({}, n, Tensor()), rows_nD, rows_nD);
  return rows_nD;
}

// Logits [tensor, n, c] of whole rows on every rank of the first data and ring rank; nothing
// elsewhere. The vocabulary is split over `tensor`; the other data and ring ranks hold the same
// rows and have nothing to add.
Tensor Engine::NewLogits(Tensor h_nD) {
  if (mesh_->data_rank() != 0 || mesh_->ring_rank() != 0) return Tensor();
  const Tensor logits_snc =
      scratch_->New("last logits", ops_->dtype(),
                    {load_.mesh.tensor, h_nD.rows(), model_->layout().vocab_padded()});
  model_->ends().Logits(NewPass({}, h_nD.rows(), Tensor()), h_nD, logits_snc);
  return logits_snc;
}

// [n][V], on rank 0; empty elsewhere.
std::vector<std::vector<double>> Engine::HostLogits(Tensor logits_snc) {
  if (mesh_->rank() != 0) return {};
  const std::vector<double> values = OnHost(*ops_, s_, logits_snc);
  const int64_t ranks = logits_snc.rows(), n = logits_snc.dims[1], c = logits_snc.dims[2];
  std::vector<std::vector<double>> rows(n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const auto shard = values.begin() + (rank * n + i) * c;
      rows[i].insert(rows[i].end(), shard, shard + c);
    }
    rows[i].resize(config().vocab);  // shards are consecutive; only the last ones are padded
  }
  return rows;
}

// Logits [V] of one row, on rank 0; empty elsewhere.
std::vector<double> Engine::LastLogits(Tensor h_1D) {
  Arena::Mark mark(*scratch_);
  std::vector<std::vector<double>> rows = HostLogits(NewLogits(h_1D));
  return rows.empty() ? std::vector<double>() : std::move(rows[0]);
}

}  // namespace toroid
