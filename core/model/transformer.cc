#include "core/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/io/weights.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kVocabTile = 8192;     // columns of a tile of logits
constexpr int64_t kLoadBytes = 4 << 20;  // of a weight read at a time

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

AttentionSpec SpecOf(const ModelConfig& config, int64_t layer) {
  AttentionSpec spec;
  spec.window = config.window(layer);
  spec.scale = 1.0 / std::sqrt(double(config.head_dim));
  return spec;
}

}  // namespace

struct Transformer::Placed {
  const ParamSpec* spec;
  ParamSlice slice;
  Tensor tensor;
};

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(const ModelSource& source,
                                                                 Backend& ops, Stream s,
                                                                 const Options& options) {
  const ModelConfig& config = source.config;
  if (options.tensor_size > config.query_heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "mesh axis tensor=", options.tensor_size, " is above the model's ", config.query_heads,
        " query heads: use tensor up to ", config.query_heads, " and put the other ranks on ring"));
  }
  const int64_t layers =
      options.layers > 0 ? std::min(options.layers, config.layers) : config.layers;
  std::vector<ParamSpec> table;
  for (ParamSpec& spec : ParamTable(config)) {
    if (spec.layer < layers && spec.alias.empty()) table.push_back(std::move(spec));
  }
  std::unique_ptr<Transformer> model(
      new Transformer(ops, config, ParamLayout(config, options.tensor_rank, options.tensor_size)));
  std::vector<Placed> placed;
  TOROID_RETURN_IF_ERROR(model->Place(source, table, options, placed));
  if (options.load) TOROID_RETURN_IF_ERROR(model->Read(source, s, options, placed));
  ops.Upload(s, model->layout_.heads().kv_index().data(), model->kv_index_);
  TOROID_RETURN_IF_ERROR(model->BuildBlocks(placed, layers));
  return model;
}

Transformer::~Transformer() {
  if (memory_ != nullptr) ops_.Free(memory_, weight_bytes_);
}

// Gives every parameter of the table its place in one piece of memory.
absl::Status Transformer::Place(const ModelSource& source, const std::vector<ParamSpec>& table,
                                const Options& options, std::vector<Placed>& placed) {
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
  for (const ParamSpec& spec : table) {
    const ParamSlice slice = layout_.Slice(spec);
    const DType type = StoredType(source, spec, options.compute);
    placed.push_back({&spec, slice, Tensor(type, {slice.row_count, slice.col_count}, nullptr)});
    offsets.push_back(bytes);
    bytes += Aligned(placed.back().tensor.bytes());
  }
  kv_index_ = Tensor(DType::kI32, {layout_.heads().query_count()}, nullptr);
  TOROID_ASSIGN_OR_RETURN(void* memory, ops_.Allocate(bytes + Aligned(kv_index_.bytes())));
  memory_ = static_cast<char*>(memory);
  weight_bytes_ = bytes + Aligned(kv_index_.bytes());
  for (size_t i = 0; i < placed.size(); ++i) placed[i].tensor.data = memory_ + offsets[i];
  kv_index_.data = memory_ + bytes;
  return absl::OkStatus();
}

// Reads this rank's slices, a few rows at a time, so that no copy of a whole weight exists beside
// it.
absl::Status Transformer::Read(const ModelSource& source, Stream s, const Options& options,
                               const std::vector<Placed>& placed) {
  int64_t done = 0;
  std::vector<char> staging;
  for (const Placed& p : placed) {
    if (p.tensor.empty()) continue;
    const int64_t step = std::max<int64_t>(1, kLoadBytes / p.tensor.row_bytes());
    for (int64_t row = 0; row < p.slice.row_count; row += step) {
      ParamSlice part = p.slice;
      part.row_begin += row;
      part.row_count = std::min(step, p.slice.row_count - row);
      const Tensor rows = p.tensor.Rows(row, part.row_count);
      if (int64_t(staging.size()) < rows.bytes()) staging.resize(rows.bytes());
      TOROID_RETURN_IF_ERROR(LoadParam(source, *p.spec, part, p.tensor.dtype, staging.data()));
      ops_.Upload(s, staging.data(), rows);
      done += rows.bytes();
      options.progress(done, weight_bytes_);
    }
  }
  return absl::OkStatus();
}

// Hands the parameters to the blocks by name; absent ones (biases, head norms) stay empty.
absl::Status Transformer::BuildBlocks(const std::vector<Placed>& placed, int64_t layers) {
  absl::flat_hash_map<std::string, Tensor> by_name;
  for (const Placed& p : placed) by_name[p.spec->name] = p.tensor;
  const auto matrix = [&](const std::string& name) {
    const auto it = by_name.find(name);
    return it == by_name.end() ? Tensor() : it->second;
  };
  const auto vector = [&](const std::string& name) {
    const Tensor t = matrix(name);
    return t.dim_count == 0 ? t : t.Reshape({t.size()});
  };
  const auto linear = [&](const std::string& name) {
    return Linear{matrix(name + ".weight"), vector(name + ".bias")};
  };
  embedding_vD_ = matrix("model.embed_tokens.weight");
  final_norm_D_ = vector("model.norm.weight");
  head_vD_ = config_.tied_embeddings ? embedding_vD_ : matrix("lm_head.weight");
  for (int64_t i = 0; i < layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    Block block;
    block.attention_norm_D = vector(prefix + "input_layernorm.weight");
    block.mlp_norm_D = vector(prefix + "post_attention_layernorm.weight");
    block.norm_epsilon = config_.norm_epsilon;
    block.attention = {linear(prefix + "self_attn.q_proj"),
                       linear(prefix + "self_attn.k_proj"),
                       linear(prefix + "self_attn.v_proj"),
                       linear(prefix + "self_attn.o_proj"),
                       vector(prefix + "self_attn.q_norm.weight"),
                       vector(prefix + "self_attn.k_norm.weight"),
                       layout_.heads().query_count(),
                       layout_.heads().kv_count(),
                       config_.head_dim,
                       config_.norm_epsilon,
                       SpecOf(config_, i)};
    block.mlp = {linear(prefix + "mlp.gate_proj"), linear(prefix + "mlp.up_proj"),
                 linear(prefix + "mlp.down_proj")};
    TOROID_RETURN_IF_ERROR(block.attention.spec.Validate());
    blocks_.push_back(block);
  }
  return absl::OkStatus();
}

void Transformer::Embed(const Pass& pass, Tensor ids_t, Tensor x_uD) const {
  const int64_t t = pass.residual.tokens();
  Arena::Mark mark(pass.scratch);
  Tensor y_tD = pass.Long("y", ops_.dtype(), {pass.residual.padded(), config_.dim});
  ops_.Embed(pass.s, ids_t, embedding_vD_, layout_.vocab().begin, y_tD.Rows(0, t));
  if (y_tD.rows() > t) ops_.Fill(pass.s, y_tD.Rows(t, y_tD.rows() - t), 0.0);
  // Rows of ids that other ranks hold are zero here: a sum over v is owed.
  const Tensor reduced = pass.residual.Reduce(pass.tensor, pass.s, Partial(y_tD), x_uD);
  if (reduced.data != x_uD.data) ops_.Copy(pass.s, reduced, x_uD);
}

void Transformer::FinalNorm(const Pass& pass, Tensor x_tD, Tensor a_tD) const {
  ops_.RmsNorm(pass.s, x_tD, final_norm_D_, config_.norm_epsilon, a_tD);
}

void Transformer::Logits(const Pass& pass, Tensor h_nD, Tensor logits_snc) const {
  const int64_t n = h_nD.rows(), c = layout_.vocab_padded(), v = layout_.vocab().size();
  const int64_t rank = pass.tensor.rank();
  Tensor shards = logits_snc.Reshape({pass.tensor.size() * n, c});
  Tensor own = shards.Rows(rank * n, n);
  if (v > 0) ops_.MatMul(pass.s, h_nD, head_vD_, Tensor(), own.Cols(0, v));
  pass.tensor.AllGather(pass.s, own, shards);
}

void Transformer::Head(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_p_n,
                       Tensor log_z_n) const {
  const int64_t n = h_nD.rows(), v = layout_.vocab().size(), ranks = pass.tensor.size();
  Arena::Mark mark(pass.scratch);
  Tensor parts = pass.scratch.New("vocabulary statistics", DType::kF64, {ranks * n, 3});
  Tensor own = parts.Rows(pass.tensor.rank() * n, n);
  ops_.Fill(pass.s, own, -std::numeric_limits<double>::infinity());
  ops_.Fill(pass.s, own.Cols(1, 1), 0.0);
  for (int64_t begin = 0; begin < v; begin += kVocabTile) {
    const int64_t tile = std::min(kVocabTile, v - begin);
    Arena::Mark tile_mark(pass.scratch);
    Tensor logits = pass.scratch.New("logits", ops_.dtype(), {n, tile});
    ops_.MatMul(pass.s, h_nD, head_vD_.Rows(begin, tile), Tensor(), logits);
    ops_.VocabStatistics(pass.s, logits, layout_.vocab().begin + begin, labels_n, own);
  }
  pass.tensor.AllGather(pass.s, own, parts);
  ops_.VocabMerge(pass.s, parts.Reshape({ranks, n, 3}), log_p_n, log_z_n);
}

}  // namespace toroid
