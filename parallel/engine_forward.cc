// The engine's passes: prefill of a prompt as a ring, decode of one token, rows of the result.
#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "core/status_macros.h"
#include "kernels/matmul.h"
#include "parallel/engine_sequence.h"

namespace toroid {
namespace {

// The cache's keys rounded up, by an eighth at most: so many sizes of a decode step there are.
int64_t RoundedKeys(const KvCache& cache) {
  const int64_t keys = cache.length();
  const int64_t step = std::max<int64_t>(256, int64_t(std::bit_floor(uint64_t(keys))) / 8);
  return std::min((keys + step - 1) / step * step, cache.capacity());
}

}  // namespace

absl::Status Engine::Begin(Sequence& sequence) {
  sequence.rope = Rope(config(), sequence.limit);
  sequence.inv_freq =
      scratch_->New("inverse frequencies", DType::kF64, {int64_t(sequence.rope.inv_freq.size())});
  ops_->Upload(s_, sequence.rope.inv_freq.data(), sequence.inv_freq);
  sequence.ring = std::make_unique<RingAttention>(
      *ops_, s_, comm_s_, *scratch_, *mesh_, sequence.layout,
      [this, &sequence](int64_t layer, int64_t round, int64_t rounds) {
        At("ring", layer, round);
        Report(sequence, double(layer) + double(round) / double(rounds));
      });
  if (!sequence.cached) return absl::OkStatus();
  // This rank's tokens: of the prompt by its layout, of what follows by stripes of one page.
  int64_t local = sequence.layout.count(mesh_->data_rank(), mesh_->ring_rank());
  for (int64_t p = int64_t(sequence.ids.size()); p < sequence.limit; ++p) {
    local += mesh_->data_rank() == 0 && OwnerOfNew(p) == mesh_->ring_rank();
  }
  return cache_->Begin(s_, local, shuffle_seed_);
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

Pass Engine::NewPass(const Sequence& sequence, int64_t tokens, Tensor positions_t) {
  Pass pass{*ops_,
            s_,
            *scratch_,
            mesh_->tensor(),
            ResidualLayout(tokens, mesh_->tensor_rank(), load_.mesh.tensor),
            positions_t,
            sequence.inv_freq};
  pass.rope_scale = sequence.rope.attention_scale;
  // Few rows are multiplied as they are (kernels/matmul.h).
  if (tokens > kMatVecRows) pass.activation = ops_->activation();
  pass.kv_dtype = cache_->shape().dtype;
  pass.token_block = ops_->token_block();
  pass.observer = sequence.observer;
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
  Tensor slots_t;
  if (sequence.cached) {
    slots_t = upload("slots", DType::kI64, cache_->Append(s_, positions).data());
  }

  Pass pass = NewPass(sequence, t, positions_t);
  pass.kv_capacity = sequence.layout.max_count(data);
  pass.attend = [&](int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                    Tensor o_thK, Tensor lse_th) {
    if (sequence.cached) {
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
  sequence.length = int64_t(sequence.ids.size());
  return x_uD;
}

// Every ring rank has the whole token: it computes Q itself, attends to its own pages, and only the
// owner of the position writes K and V. Returns h [1, D], normed; [0, D] on other data ranks.
Tensor Engine::Decode(Sequence& sequence, int32_t id) {
  const int32_t position = int32_t(sequence.length++);
  const int64_t t = mesh_->data_rank() == 0 ? 1 : 0;
  const bool owner = t == 1 && OwnerOfNew(position) == mesh_->ring_rank();
  const int64_t slot = owner ? cache_->Append(s_, {position})[0] : -1;
  At("decode", -1, position);

  // What differs from token to token, in one upload.
  const std::array<int64_t, 4> words = {id, position, slot, cache_->length()};
  Tensor words_4 = scratch_->New("decode step", DType::kI64, {4});
  ops_->Upload(s_, words.data(), words_4);
  const auto word = [&](int i, DType type, int64_t rows) {  // its low half, of an i32
    static_assert(std::endian::native == std::endian::little);
    return Tensor(type, {rows}, words_4.Rows(i, 1).data);
  };
  const Tensor ids_t = word(0, DType::kI32, t), positions_t = word(1, DType::kI32, t);
  const Tensor slots_t = word(2, DType::kI64, t), length_1 = word(3, DType::kI32, 1);
  // A device that keeps work sees no more keys than there are in a view of a rounded size.
  const bool repeats = ops_->repeats() && mesh_->world().size() == 1 && !sequence.observer;
  const int64_t keys = repeats ? RoundedKeys(*cache_) : cache_->length();
  Pass pass = NewPass(sequence, t, positions_t);
  pass.attend = [&](int64_t layer, const AttentionSpec& spec, Tensor q_thK, Tensor kv_2tgK,
                    Tensor o_thK, Tensor lse_th) {
    ops_->KvWrite(s_, kv_2tgK.Rows(0, t), slots_t, cache_->keys(layer));
    ops_->KvWrite(s_, kv_2tgK.Rows(t, t), slots_t, cache_->values(layer));
    KvView cached = cache_->View(layer, keys);
    if (repeats) cached.length = length_1;
    DecodeAttention(*ops_, s_, *scratch_, mesh_->ring(), spec, q_thK, positions_t, cached,
                    model_->kv_index(), o_thK, lse_th);
  };
  Tensor x_uD = scratch_->New("x", ops_->dtype(), {pass.residual.share(), config().dim},
                              Arena::Length::kTokens);
  const auto forward = [&] {
    model_->ends().Embed(pass, ids_t, x_uD);
    for (int64_t layer = 0; layer < model_->layers(); ++layer) {
      model_->ForwardLayer(pass, layer, x_uD);
    }
    // One token is whole on each tensor rank, or (tensor = 1) the share is all of it.
    model_->ends().FinalNorm(pass, x_uD, x_uD);
  };
  if (repeats) {
    ops_->Repeat(s_,
                 {keys, scratch_->used(), reinterpret_cast<intptr_t>(sequence.inv_freq.data),
                  std::bit_cast<int64_t>(pass.rope_scale)},
                 forward);
  } else {
    forward();
  }
  return x_uD;
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
  model_->ends().FinalNorm(NewPass(sequence, n, Tensor()), rows_nD, rows_nD);
  return rows_nD;
}

// Logits [V] of one row, on rank 0; empty elsewhere. The vocabulary is split over `tensor`; the
// other data and ring ranks hold the same row and have nothing to add.
std::vector<double> Engine::LastLogits(const Sequence& sequence, Tensor h_1D) {
  if (mesh_->data_rank() != 0 || mesh_->ring_rank() != 0) return {};
  Arena::Mark mark(*scratch_);
  const int64_t c = model_->layout().vocab_padded(), ranks = load_.mesh.tensor;
  Tensor logits = scratch_->New("last logits", ops_->dtype(), {ranks, 1, c});
  model_->ends().Logits(NewPass(sequence, 1, Tensor()), h_1D, logits);
  if (mesh_->rank() != 0) return {};
  Tensor wide = logits;
  if (ops_->dtype() != DType::kF64) {
    wide = scratch_->New("last logits, f64", DType::kF64, {ranks, 1, c});
    ops_->Copy(s_, logits, wide);
  }
  std::vector<double> values(ranks * c);
  ops_->Download(s_, wide, values.data());
  values.resize(config().vocab);  // shards are consecutive; only the last ones are padded
  return values;
}

}  // namespace toroid
