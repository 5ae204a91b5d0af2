#include "core/io/describe.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/model_checkpoint.h"
#include "core/io/weights.h"
#include "core/model/params.h"

namespace toroid {
namespace {

std::string RopeText(const RopeScaling& rope) {
  switch (rope.kind) {
    case RopeScaling::Kind::kNone:
      return "none";
    case RopeScaling::Kind::kLinear:
      return absl::StrCat("linear, factor ", rope.factor);
    case RopeScaling::Kind::kLlama3:
      return absl::StrCat("llama3, factor ", rope.factor, " from ", rope.original_context);
    case RopeScaling::Kind::kYarn:
      return absl::StrCat("yarn, factor ", rope.factor, " from ", rope.original_context);
    case RopeScaling::Kind::kDynamic:
      return absl::StrCat("dynamic, factor ", rope.factor, " from ", rope.original_context);
    case RopeScaling::Kind::kDivisors:
      return "divisors of tensor rope_freqs";
  }
  return "";
}

// "none", one window for all layers, "0 256, repeated", or the window of each.
std::string WindowText(const ModelConfig& config) {
  const std::vector<int64_t>& windows = config.windows;
  if (windows.empty()) return "none";
  if (windows.size() > 2 && windows[0] != windows[1] &&
      std::equal(windows.begin() + 2, windows.end(), windows.begin())) {
    return absl::StrCat(windows[0], " ", windows[1], ", repeated");
  }
  for (const int64_t window : config.windows) {
    if (window != config.windows[0]) return absl::StrJoin(config.windows, " ");
  }
  return config.windows[0] == 0 ? "none" : absl::StrCat(config.windows[0]);
}

std::string TokenizerText(const TokenizerSource& tokenizer) {
  switch (tokenizer.kind) {
    case TokenizerSource::Kind::kBytes:
      return "bytes";
    case TokenizerSource::Kind::kHuggingFace:
      return "tokenizer.json";
    case TokenizerSource::Kind::kGguf:
      return absl::StrCat("gguf ", tokenizer.gguf.model);
    case TokenizerSource::Kind::kNone:
      return "none";
  }
  return "";
}

std::vector<std::pair<std::string, std::string>> ConfigurationText(const ModelConfig& config) {
  const bool rope = config.positions == PositionKind::kRope;
  std::vector<std::string> biases;
  if (config.qkv_bias) biases.push_back("qkv");
  if (config.output_bias) biases.push_back("output");
  if (config.mlp_bias) biases.push_back("mlp");
  if (config.norm == NormKind::kLayer) biases.push_back("norm");
  return {{"layers", absl::StrCat(config.layers)},
          {"dim", absl::StrCat(config.dim)},
          {"ffn", absl::StrCat(config.ffn)},
          {"query_heads", absl::StrCat(config.query_heads)},
          {"kv_heads", absl::StrCat(config.kv_heads)},
          {"head_dim", absl::StrCat(config.head_dim)},
          {"vocab", absl::StrCat(config.vocab)},
          {"context", absl::StrCat(config.context)},
          {"norm", config.norm == NormKind::kRms ? "rms" : "layer"},
          {"norm_epsilon", absl::StrCat(config.norm_epsilon)},
          {"activation", config.activation == Activation::kSwiGlu ? "swiglu" : "gelu"},
          {"block", config.parallel_block ? "parallel" : "serial"},
          {"positions", rope ? "rope" : "learned"},
          {"rope_base", rope ? absl::StrCat(config.rope_base) : "none"},
          {"rope_scaling", rope ? RopeText(config.rope) : "none"},
          {"sliding_window", WindowText(config)},
          {"biases", biases.empty() ? "none" : absl::StrJoin(biases, " ")},
          {"qk_norm", config.qk_norm ? "yes" : "no"},
          {"tied_embeddings", config.tied_embeddings ? "yes" : "no"},
          {"logit_scale", absl::StrCat(config.logit_scale)}};
}

}  // namespace

ModelDescription Describe(const ModelSource& source) {
  ModelDescription result;
  result.path = source.path;
  result.format = source.format;
  result.name = source.config.name;
  result.architecture = source.config.architecture;
  result.parameters = source.config.ParameterCount();
  result.fingerprint = source.Fingerprint();
  result.tokenizer = TokenizerText(source.tokenizer);
  result.configuration = ConfigurationText(source.config);
  for (const MappedFile& file : source.files) {
    result.files.push_back({file.path(), int64_t(file.bytes().size())});
  }
  for (const auto& [name, tensor] : source.tensors) {
    result.tensors.push_back({name, Info(tensor.dtype).name, tensor.shape,
                              RowBytes(tensor.dtype, tensor.rows() * tensor.cols()), tensor.file,
                              tensor.interleaved_heads > 0});
  }
  if (source.checkpoint != nullptr) {
    const CheckpointManifest& manifest = source.checkpoint->manifest();
    const int64_t ranks = int64_t(manifest.shards.size());
    for (int64_t rank = 0; rank < ranks; ++rank) {
      result.files.push_back(
          {absl::StrCat(source.checkpoint->directory(), "/", ShardName(rank, ranks)),
           manifest.shards[rank].bytes});
    }
    for (const CheckpointParameter& p : manifest.parameters) {
      result.tensors.push_back({p.name,
                                Info(manifest.dtype).name,
                                {p.rows, p.cols},
                                RowBytes(manifest.dtype, p.rows * p.cols),
                                -1,
                                false});
    }
    std::sort(result.tensors.begin(), result.tensors.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
  }
  if (source.random_seed.has_value()) {
    for (const ParamSpec& spec : ParamTable(source.config)) {
      if (!spec.alias.empty()) continue;
      const DType type = StoredType(source, spec, DType::kF32);
      result.tensors.push_back({spec.name,
                                Info(type).name,
                                {spec.rows, spec.cols},
                                spec.rows * RowBytes(type, spec.cols),
                                -1,
                                false});
    }
  }
  std::map<std::string, ModelDescription::TypeTotal> types;
  for (const ModelDescription::Tensor& tensor : result.tensors) {
    ModelDescription::TypeTotal& total = types[tensor.dtype];
    total.dtype = tensor.dtype;
    ++total.tensors;
    total.bytes += tensor.bytes;
    result.tensor_bytes += tensor.bytes;
  }
  for (const auto& [name, total] : types) result.types.push_back(total);
  return result;
}

}  // namespace toroid
