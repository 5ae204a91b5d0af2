#include "core/model/params.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr int64_t kGranule = 32;  // of F: one block of every quantised type that is kept as stored

// Builds rows in the order in which Forward reads them.
class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {}

  std::vector<ParamSpec> Build() {
    const int64_t dim = config_.dim;
    // A head tied to it makes logits of deviation 1 of a normed row.
    const double embedding = config_.tied_embeddings ? FanIn(dim) / config_.logit_scale : 1.0;
    Matrix("model.embed_tokens.weight", config_.vocab, dim, Split::kVocabRows, "embedding",
           embedding);
    if (config_.positions == PositionKind::kLearned) {
      Matrix("model.embed_positions.weight", config_.context, dim, Split::kPositionRows,
             "embedding", embedding);
    }
    for (layer_ = 0; layer_ < config_.layers; ++layer_) Layer();
    layer_ = -1;
    Norm("model.norm", dim);
    Matrix("lm_head.weight", config_.vocab, dim, Split::kVocabRows, "head", FanIn(dim));
    if (config_.tied_embeddings) table_.back().alias = "model.embed_tokens.weight";
    return std::move(table_);
  }

 private:
  static double FanIn(int64_t inputs) { return 1.0 / std::sqrt(double(inputs)); }

  void Layer() {
    const int64_t dim = config_.dim, ffn = config_.ffn, head_dim = config_.head_dim;
    const int64_t query = config_.query_heads * head_dim, kv = config_.kv_heads * head_dim;
    const std::string layer = "model.layers." + std::to_string(layer_) + ".";
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    // Wider than fan-in: the scores of a random model then spread far enough that its attention is
    // not close to uniform, and a lost token shows.
    const double score = 1.5 * FanIn(dim);
    Norm(layer + "input_layernorm", dim);
    Product(attention + "q_proj", query, dim, Split::kQueryHeads, score, config_.qkv_bias);
    Product(attention + "k_proj", kv, dim, Split::kKvHeads, score, config_.qkv_bias);
    Product(attention + "v_proj", kv, dim, Split::kKvHeads, FanIn(dim), config_.qkv_bias);
    if (config_.qk_norm) {
      Gain(attention + "q_norm.weight", head_dim);
      Gain(attention + "k_norm.weight", head_dim);
    }
    Product(attention + "o_proj", dim, query, Split::kQueryCols, FanIn(query), config_.output_bias);
    if (!config_.parallel_block) Norm(layer + "post_attention_layernorm", dim);
    if (config_.activation == Activation::kSwiGlu) {
      Product(mlp + "gate_proj", ffn, dim, Split::kFfnRows, FanIn(dim), config_.mlp_bias);
    }
    Product(mlp + "up_proj", ffn, dim, Split::kFfnRows, FanIn(dim), config_.mlp_bias);
    Product(mlp + "down_proj", dim, ffn, Split::kFfnCols, FanIn(ffn), config_.mlp_bias);
  }

  // Weight and, where the model has one, bias. The bias of a product split by columns is added
  // once, after the sum over `tensor`, so every rank holds all of it.
  void Product(const std::string& name, int64_t rows, int64_t cols, Split split, double deviation,
               bool bias) {
    const bool mlp = name.find(".mlp.") != std::string::npos;
    Matrix(name + ".weight", rows, cols, split, mlp ? "mlp" : "attention", deviation);
    if (!bias) return;
    const bool summed = split == Split::kQueryCols || split == Split::kFfnCols;
    Add(name + ".bias", 1, rows, summed ? Split::kReplicated : split, "bias", 0.0);
  }

  void Norm(const std::string& name, int64_t size) {
    Gain(name + ".weight", size);
    if (config_.norm == NormKind::kLayer) {
      Add(name + ".bias", 1, size, Split::kReplicated, "bias", 0.0);
    }
  }

  void Gain(const std::string& name, int64_t size) {
    Add(name, 1, size, Split::kReplicated, "norm", 0.0);
  }

  void Matrix(const std::string& name, int64_t rows, int64_t cols, Split split,
              const std::string& group, double deviation) {
    Add(name, rows, cols, split, group, deviation);
  }

  void Add(const std::string& name, int64_t rows, int64_t cols, Split split,
           const std::string& group, double deviation) {
    table_.push_back({name, rows, cols, split, layer_, group, "", deviation});
  }

  const ModelConfig& config_;
  int64_t layer_ = -1;
  std::vector<ParamSpec> table_;
};

// Rows [rank each, (rank + 1) each) of `rows`.
Range RowRange(int64_t rows, int64_t each, int64_t rank) {
  return {std::min(rows, rank * each), std::min(rows, (rank + 1) * each)};
}

}  // namespace

std::vector<ParamSpec> ParamTable(const ModelConfig& config) {
  return TableBuilder(config).Build();
}

ParamLayout::ParamLayout(const ModelConfig& config, int64_t rank, int64_t size)
    : head_dim_(config.head_dim), heads_(config.query_heads, config.kv_heads, rank, size) {
  const int64_t granule = config.ffn % kGranule == 0 ? kGranule : 1;
  const int64_t granules = config.ffn / granule;
  ffn_ = {rank * granules / size * granule, (rank + 1) * granules / size * granule};
  vocab_padded_ = (config.vocab + size - 1) / size;
  vocab_ = RowRange(config.vocab, vocab_padded_, rank);
  if (config.positions == PositionKind::kLearned) {
    positions_ = RowRange(config.context, (config.context + size - 1) / size, rank);
  }
}

ParamSlice ParamLayout::Slice(const ParamSpec& spec) const {
  const Range query = {heads_.query_begin() * head_dim_,
                       (heads_.query_begin() + heads_.query_count()) * head_dim_};
  const Range kv = {heads_.kv_begin() * head_dim_,
                    (heads_.kv_begin() + heads_.kv_count()) * head_dim_};
  Range outputs = {0, spec.rows == 1 ? spec.cols : spec.rows};  // a bias is split as its rows are
  Range inputs = {0, spec.cols};
  switch (spec.split) {
    case Split::kReplicated:
      break;
    case Split::kQueryHeads:
      outputs = query;
      break;
    case Split::kKvHeads:
      outputs = kv;
      break;
    case Split::kFfnRows:
      outputs = ffn_;
      break;
    case Split::kVocabRows:
      outputs = vocab_;
      break;
    case Split::kPositionRows:
      outputs = positions_;
      break;
    case Split::kQueryCols:
      inputs = query;
      break;
    case Split::kFfnCols:
      inputs = ffn_;
      break;
  }
  if (spec.rows == 1) return {0, 1, outputs.begin, outputs.size()};
  return {outputs.begin, outputs.size(), inputs.begin, inputs.size()};
}

absl::Status CheckTensorAxis(const ModelConfig& config, int64_t tensor, const char* other) {
  if (tensor <= config.query_heads) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("mesh axis tensor=", tensor, " is above the model's ", config.query_heads,
                   " query heads: use tensor up to ", config.query_heads,
                   " and put the other ranks on ", other));
}

}  // namespace toroid
