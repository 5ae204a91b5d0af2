#include "core/io/gguf_config.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr absl::string_view kArchitectures[] = {"llama", "qwen2", "qwen3"};

// Reads the keys of one architecture and remembers which it has understood.
class KeyReader {
 public:
  KeyReader(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(absl::StrCat(architecture, ".")) {}

  absl::StatusOr<ModelConfig> Config();

 private:
  std::string Key(absl::string_view name) {
    std::string key = absl::StrCat(prefix_, name);
    known_.insert(key);
    return key;
  }
  absl::Status Int(absl::string_view name, int64_t& out) {
    TOROID_ASSIGN_OR_RETURN(out, file_.Int(Key(name)));
    return absl::OkStatus();
  }
  absl::Status IntOr(absl::string_view name, int64_t fallback, int64_t& out) {
    TOROID_ASSIGN_OR_RETURN(out, file_.IntOr(Key(name), fallback));
    return absl::OkStatus();
  }
  absl::Status DoubleOr(absl::string_view name, double fallback, double& out) {
    TOROID_ASSIGN_OR_RETURN(out, file_.DoubleOr(Key(name), fallback));
    return absl::OkStatus();
  }
  // A number that some models have per layer: all of them must agree.
  absl::Status IntPerLayer(absl::string_view name, int64_t fallback, int64_t& out);
  absl::Status Sizes(ModelConfig& config);
  absl::Status Rope(ModelConfig& config);
  // Refuses a key whose value is not the one that toroid computes with.
  absl::Status Must(absl::string_view name, double value);
  absl::Status RefuseUnknown() const;

  const GgufFile& file_;
  std::string prefix_;
  absl::flat_hash_set<std::string> known_;
};

absl::Status KeyReader::IntPerLayer(absl::string_view name, int64_t fallback, int64_t& out) {
  const std::string key = Key(name);
  const auto found = file_.values().find(key);
  if (found == file_.values().end() || !found->second.is_array) {
    if (fallback < 0) return Int(name, out);
    return IntOr(name, fallback, out);
  }
  TOROID_ASSIGN_OR_RETURN(const std::vector<int64_t> values, file_.Ints(key));
  if (values.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file_.name(), ": key ", key, " is empty"));
  }
  for (const int64_t value : values) {
    if (value != values[0]) {
      return absl::UnimplementedError(absl::StrCat(
          file_.name(), ": key ", key, " differs between layers, which toroid does not compute"));
    }
  }
  out = values[0];
  return absl::OkStatus();
}

absl::Status KeyReader::Must(absl::string_view name, double value) {
  double found = value;
  const std::string key = Key(name);
  if (!file_.Has(key)) return absl::OkStatus();
  if (file_.values().at(key).type == GgufValue::kBool) {
    TOROID_ASSIGN_OR_RETURN(const bool truth, file_.Bool(key));
    found = truth;
  } else {
    TOROID_ASSIGN_OR_RETURN(found, file_.Double(key));
  }
  if (found == value) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(file_.name(), ": key ", key, " = ", found,
                                               ": toroid computes with ", value, " only"));
}

absl::Status KeyReader::Sizes(ModelConfig& config) {
  TOROID_RETURN_IF_ERROR(Int("block_count", config.layers));
  TOROID_RETURN_IF_ERROR(Int("embedding_length", config.dim));
  TOROID_RETURN_IF_ERROR(Int("context_length", config.context));
  TOROID_RETURN_IF_ERROR(IntPerLayer("feed_forward_length", -1, config.ffn));
  TOROID_RETURN_IF_ERROR(IntPerLayer("attention.head_count", -1, config.query_heads));
  TOROID_RETURN_IF_ERROR(
      IntPerLayer("attention.head_count_kv", config.query_heads, config.kv_heads));
  if (config.query_heads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.name(), ": key ", prefix_, "attention.head_count must be at least 1"));
  }
  TOROID_RETURN_IF_ERROR(
      IntOr("attention.key_length", config.dim / config.query_heads, config.head_dim));
  TOROID_RETURN_IF_ERROR(Must("attention.value_length", double(config.head_dim)));
  TOROID_RETURN_IF_ERROR(Must("rope.dimension_count", double(config.head_dim)));
  TOROID_RETURN_IF_ERROR(DoubleOr("attention.layer_norm_rms_epsilon", 1e-5, config.norm_epsilon));
  int64_t window = 0;
  TOROID_RETURN_IF_ERROR(IntOr("attention.sliding_window", 0, window));
  if (window != 0) {
    if (config.layers < 1 || config.layers > 4096) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_.name(), ": key ", prefix_, "block_count = ", config.layers, ": 1 to 4096"));
    }
    config.windows.assign(size_t(config.layers), window);
  }
  // The vocabulary's size: a key, or the number of tokens.
  const auto tokens = file_.values().find("tokenizer.ggml.tokens");
  const int64_t count = tokens == file_.values().end() ? 0 : int64_t(tokens->second.count);
  return IntOr("vocab_size", count, config.vocab);
}

absl::Status KeyReader::Rope(ModelConfig& config) {
  RopeScaling& rope = config.rope;
  TOROID_RETURN_IF_ERROR(DoubleOr("rope.freq_base", 10000.0, config.rope_base));
  const std::string type_key = Key("rope.scaling.type");
  std::string type = "none";
  if (file_.Has(type_key)) {
    TOROID_ASSIGN_OR_RETURN(type, file_.String(type_key));
  }
  TOROID_RETURN_IF_ERROR(DoubleOr("rope.scaling.factor", 1.0, rope.factor));
  double linear = 1.0;  // the key of old files
  TOROID_RETURN_IF_ERROR(DoubleOr("rope.scale_linear", 1.0, linear));
  TOROID_RETURN_IF_ERROR(
      IntOr("rope.scaling.original_context_length", config.context, rope.original_context));
  Key("rope.scaling.finetuned");  // says how it was trained, not how to compute
  if (linear != 1.0 && type == "none") {
    type = "linear";
    rope.factor = linear;
  }
  if (type == "linear") {
    rope.kind = rope.factor == 1.0 ? RopeScaling::Kind::kNone : RopeScaling::Kind::kLinear;
    const double reach = rope.factor * double(config.context);
    if (reach > 0 && reach < 0x1p32) {  // others are refused by Validate
      config.context = std::max(config.context, int64_t(reach));
    }
  } else if (type == "yarn") {
    rope.kind = RopeScaling::Kind::kYarn;
    TOROID_RETURN_IF_ERROR(DoubleOr("rope.scaling.yarn_beta_fast", 32.0, rope.beta_fast));
    TOROID_RETURN_IF_ERROR(DoubleOr("rope.scaling.yarn_beta_slow", 1.0, rope.beta_slow));
    TOROID_RETURN_IF_ERROR(Must("rope.scaling.yarn_ext_factor", 1.0));
    TOROID_RETURN_IF_ERROR(Must("rope.scaling.yarn_attn_factor", 1.0));
    TOROID_RETURN_IF_ERROR(Must("rope.scaling.attn_factor", 1.0));
    TOROID_RETURN_IF_ERROR(Must("rope.scaling.yarn_log_multiplier", 0.0));
    const double reach = rope.factor * double(rope.original_context);
    if (reach > 0 && reach < 0x1p32) {  // others are refused by Validate
      config.context = std::max(config.context, int64_t(reach));
    }
  } else if (type != "none") {
    return absl::UnimplementedError(
        absl::StrCat(file_.name(), ": key ", type_key, " = ", type,
                     ": toroid computes none, linear and yarn (and Llama 3's by rope_freqs)"));
  }
  return absl::OkStatus();
}

absl::Status KeyReader::RefuseUnknown() const {
  for (const auto& [key, value] : file_.values()) {
    if (absl::StartsWith(key, prefix_) && !known_.contains(key)) {
      return absl::UnimplementedError(absl::StrCat(
          file_.name(), ": key ", key, " may change the mathematics and is not implemented"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> KeyReader::Config() {
  ModelConfig config;
  config.architecture = prefix_.substr(0, prefix_.size() - 1);
  TOROID_RETURN_IF_ERROR(Sizes(config));
  TOROID_RETURN_IF_ERROR(Rope(config));
  config.qk_norm = config.architecture == "qwen3";
  config.qkv_bias = config.architecture == "qwen2";
  TOROID_RETURN_IF_ERROR(Must("expert_count", 0));
  TOROID_RETURN_IF_ERROR(Must("expert_used_count", 0));
  TOROID_RETURN_IF_ERROR(Must("attention.causal", 1));
  TOROID_RETURN_IF_ERROR(Must("use_parallel_residual", 0));
  Key("tensor_data_layout");  // a remark
  TOROID_RETURN_IF_ERROR(RefuseUnknown());
  TOROID_RETURN_IF_ERROR(config.Validate());
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file) {
  if (file.Has("general.type")) {
    TOROID_ASSIGN_OR_RETURN(const std::string type, file.String("general.type"));
    if (type != "model") {
      return absl::UnimplementedError(
          absl::StrCat(file.name(), ": key general.type = ", type, ": toroid reads models"));
    }
  }
  TOROID_ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  for (const absl::string_view known : kArchitectures) {
    if (known == architecture) return KeyReader(file, architecture).Config();
  }
  return absl::UnimplementedError(absl::StrCat(file.name(), ": architecture ", architecture,
                                               " is not supported; GGUF files of ",
                                               absl::StrJoin(kArchitectures, ", "), " are"));
}

absl::StatusOr<GgufVocabulary> GgufTokenizer(const GgufFile& file) {
  GgufVocabulary vocabulary;
  const auto text = [&](const std::string& key, std::string& out) -> absl::Status {
    if (!file.Has(key)) return absl::OkStatus();
    TOROID_ASSIGN_OR_RETURN(out, file.String(key));
    return absl::OkStatus();
  };
  TOROID_RETURN_IF_ERROR(text("tokenizer.ggml.model", vocabulary.model));
  TOROID_RETURN_IF_ERROR(text("tokenizer.ggml.pre", vocabulary.pre));
  TOROID_RETURN_IF_ERROR(text("tokenizer.chat_template", vocabulary.chat_template));
  const auto texts = [&](const std::string& key, std::vector<std::string>& out) -> absl::Status {
    if (!file.Has(key)) return absl::OkStatus();
    TOROID_ASSIGN_OR_RETURN(out, file.Strings(key));
    return absl::OkStatus();
  };
  TOROID_RETURN_IF_ERROR(texts("tokenizer.ggml.tokens", vocabulary.tokens));
  TOROID_RETURN_IF_ERROR(texts("tokenizer.ggml.merges", vocabulary.merges));
  if (file.Has("tokenizer.ggml.scores")) {
    TOROID_ASSIGN_OR_RETURN(vocabulary.scores, file.Floats("tokenizer.ggml.scores"));
  }
  if (file.Has("tokenizer.ggml.token_type")) {
    TOROID_ASSIGN_OR_RETURN(const auto types, file.Ints("tokenizer.ggml.token_type"));
    vocabulary.token_types.assign(types.begin(), types.end());
  }
  const size_t count = vocabulary.tokens.size();
  if ((!vocabulary.scores.empty() && vocabulary.scores.size() != count) ||
      (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count)) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.name(), ": tokenizer.ggml: ", count, " tokens, ", vocabulary.scores.size(),
        " scores and ", vocabulary.token_types.size(), " types: the numbers must agree"));
  }
  const std::pair<const char*, std::optional<int32_t>*> ids[] = {
      {"tokenizer.ggml.bos_token_id", &vocabulary.bos_id},
      {"tokenizer.ggml.eos_token_id", &vocabulary.eos_id},
      {"tokenizer.ggml.unknown_token_id", &vocabulary.unk_id}};
  for (const auto& [key, out] : ids) {
    if (!file.Has(key)) continue;
    TOROID_ASSIGN_OR_RETURN(const int64_t id, file.Int(key));
    // llama.cpp writes -1 (or 2^32 - 1) where there is none.
    if (id >= 0 && id < int64_t(count)) *out = int32_t(id);
  }
  const std::pair<const char*, std::optional<bool>*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &vocabulary.add_bos},
      {"tokenizer.ggml.add_eos_token", &vocabulary.add_eos},
      {"tokenizer.ggml.add_space_prefix", &vocabulary.add_space_prefix}};
  for (const auto& [key, out] : flags) {
    if (!file.Has(key)) continue;
    TOROID_ASSIGN_OR_RETURN(*out, file.Bool(key));
  }
  return vocabulary;
}

}  // namespace toroid
