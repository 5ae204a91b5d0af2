#include "core/io/hugging_face_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/hugging_face_rope.h"
#include "core/io/json_fields.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;

// What differs between the families: names, and the values that transformers takes for absent keys.
struct Family {
  absl::string_view model_type, architecture;
  int64_t kv_heads;  // 0: as many as query heads
  int64_t head_dim;  // 0: hidden_size / num_attention_heads
  int64_t context;
};
constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 0, 0, 2048},   {"mistral", "MistralForCausalLM", 8, 0, 131072},
    {"qwen2", "Qwen2ForCausalLM", 32, 0, 32768}, {"qwen3", "Qwen3ForCausalLM", 32, 128, 32768},
    {"gpt2", "GPT2LMHeadModel", 0, 0, 1024},  // ReadGpt2
};

// Keys without influence on the logits of inference: names, training, sampling defaults (taken from
// generation_config.json), output switches of the Python library, remarks of converters.
constexpr absl::string_view kHarmless[] = {
    // identity and storage
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "tokenizer_class",
    "unsloth_version",
    "unsloth_fixed",
    "is_llama_config",
    "transformers.js_config",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "_flash_attn_2_enabled",
    "use_cache",
    "use_flash_attn",
    "use_flash_attention",
    "n_ctx",  // n_positions counts
    // training
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "attn_pdrop",
    "gradient_checkpointing",
    // special tokens and sampling
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_length",
    "min_length",
    "max_new_tokens",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    // outputs and tasks
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "problem_type",
    "id2label",
    "label2id",
    "num_labels",
    "finetuning_task",
    "prefix",
    "torchscript",
    "is_decoder",
    "tf_legacy_loss",
    "chunk_size_feed_forward",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
};

absl::StatusOr<const Family*> FindFamily(JsonFields& fields) {
  std::string type;
  TOROID_RETURN_IF_ERROR(fields.StringOr("model_type", "", type));
  const Family* family = nullptr;
  std::vector<absl::string_view> known;
  for (const Family& candidate : kFamilies) {
    if (candidate.model_type == type) family = &candidate;
    known.push_back(candidate.model_type);
  }
  if (family == nullptr) {
    return absl::UnimplementedError(absl::StrCat(fields.where(), ": model_type \"", type,
                                                 "\" is not supported; ",
                                                 absl::StrJoin(known, ", "), " are"));
  }
  const json* architectures = fields.Find("architectures");
  if (architectures == nullptr) return family;
  if (*architectures != json::array({std::string(family->architecture)})) {
    return absl::UnimplementedError(absl::StrCat(
        fields.where(), ": architectures = ", Shown(*architectures), ": of model_type ", type,
        " toroid computes ", family->architecture, " alone"));
  }
  return family;
}

// Sizes, activation, biases: the plain numbers.
absl::Status ReadSizes(JsonFields& fields, const Family& family, ModelConfig& config) {
  TOROID_RETURN_IF_ERROR(fields.Int("num_hidden_layers", config.layers));
  TOROID_RETURN_IF_ERROR(fields.Int("hidden_size", config.dim));
  TOROID_RETURN_IF_ERROR(fields.Int("intermediate_size", config.ffn));
  TOROID_RETURN_IF_ERROR(fields.Int("num_attention_heads", config.query_heads));
  TOROID_RETURN_IF_ERROR(fields.Int("vocab_size", config.vocab));
  if (config.query_heads < 1) return fields.Wrong("num_attention_heads", "must be at least 1");
  if (config.layers < 1 || config.layers > 4096) {
    return fields.Wrong("num_hidden_layers", "must be between 1 and 4096");
  }
  const int64_t kv_heads = family.kv_heads == 0 ? config.query_heads : family.kv_heads;
  const int64_t head_dim = family.head_dim == 0 ? config.dim / config.query_heads : family.head_dim;
  TOROID_RETURN_IF_ERROR(fields.IntOr("num_key_value_heads", kv_heads, config.kv_heads));
  TOROID_RETURN_IF_ERROR(fields.IntOr("head_dim", head_dim, config.head_dim));
  TOROID_RETURN_IF_ERROR(fields.IntOr("max_position_embeddings", family.context, config.context));
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("rms_norm_eps", 1e-6, config.norm_epsilon));
  TOROID_RETURN_IF_ERROR(fields.BoolOr("tie_word_embeddings", false, config.tied_embeddings));
  std::string activation;
  TOROID_RETURN_IF_ERROR(fields.StringOr("hidden_act", "silu", activation));
  if (activation != "silu" && activation != "swish") {
    return absl::UnimplementedError(absl::StrCat(fields.where(), ": hidden_act = ", activation,
                                                 ": toroid computes silu alone"));
  }
  config.qk_norm = family.model_type == "qwen3";
  config.qkv_bias = family.model_type == "qwen2";
  if (family.model_type == "llama" || family.model_type == "qwen3") {
    bool bias = false;
    TOROID_RETURN_IF_ERROR(fields.BoolOr("attention_bias", false, bias));
    config.qkv_bias = config.output_bias = bias;
  }
  if (family.model_type == "llama") {
    TOROID_RETURN_IF_ERROR(fields.BoolOr("mlp_bias", false, config.mlp_bias));
  }
  return absl::OkStatus();
}

// GPT-2's own keys. Its blocks have one form: what would change it is refused.
absl::Status ReadGpt2(JsonFields& fields, const Family& family, ModelConfig& config) {
  config.architecture = "gpt";
  TOROID_RETURN_IF_ERROR(fields.IntOr("n_layer", 12, config.layers));
  TOROID_RETURN_IF_ERROR(fields.IntOr("n_embd", 768, config.dim));
  TOROID_RETURN_IF_ERROR(fields.IntOr("n_head", 12, config.query_heads));
  TOROID_RETURN_IF_ERROR(fields.IntOr("n_positions", family.context, config.context));
  TOROID_RETURN_IF_ERROR(fields.IntOr("vocab_size", 50257, config.vocab));
  if (config.dim < 1 || config.dim > int64_t{1} << 24) {
    return fields.Wrong("n_embd", "must be between 1 and 2^24");
  }
  if (config.query_heads < 1 || config.dim % config.query_heads != 0) {
    return fields.Wrong("n_head", "must divide n_embd");
  }
  if (config.layers < 1 || config.layers > 4096) {
    return fields.Wrong("n_layer", "must be between 1 and 4096");
  }
  TOROID_RETURN_IF_ERROR(fields.IntOr("n_inner", 4 * config.dim, config.ffn));
  config.kv_heads = config.query_heads;
  config.head_dim = config.dim / config.query_heads;
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("layer_norm_epsilon", 1e-5, config.norm_epsilon));
  TOROID_RETURN_IF_ERROR(fields.BoolOr("tie_word_embeddings", true, config.tied_embeddings));
  std::string activation;
  TOROID_RETURN_IF_ERROR(fields.StringOr("activation_function", "gelu_new", activation));
  if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") {
    return absl::UnimplementedError(absl::StrCat(fields.where(),
                                                 ": activation_function = ", activation,
                                                 ": of GPT-2 toroid computes gelu_new alone"));
  }
  bool scaled = true;
  TOROID_RETURN_IF_ERROR(fields.BoolOr("scale_attn_weights", true, scaled));
  if (!scaled) {
    return absl::UnimplementedError(absl::StrCat(
        fields.where(), ": scale_attn_weights = false: toroid divides by the root of a head"));
  }
  config.norm = NormKind::kLayer;
  config.activation = Activation::kGelu;
  config.positions = PositionKind::kLearned;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  return absl::OkStatus();
}

// "full_attention" and "sliding_attention" by layer; empty if the key is absent.
absl::Status ReadLayerTypes(JsonFields& fields, const ModelConfig& config,
                            std::vector<bool>& sliding) {
  const json* types = fields.Find("layer_types");
  if (types == nullptr) return absl::OkStatus();
  if (!types->is_array() || int64_t(types->size()) != config.layers) {
    return fields.Wrong("layer_types", "must be a list with one text per layer");
  }
  for (const json& type : *types) {
    if (type != json("full_attention") && type != json("sliding_attention")) {
      return absl::UnimplementedError(
          absl::StrCat(fields.where(), ": layer_types holds ", Shown(type),
                       ": toroid computes full_attention and sliding_attention"));
    }
    sliding.push_back(type == json("sliding_attention"));
  }
  return absl::OkStatus();
}

// Mistral: `sliding_window` (4096 if the key is absent, none if null) in every layer. Qwen2, Qwen3:
// only if use_sliding_window, in the layers that layer_types says, or from layer max_window_layers
// on. Llama has none: its keys, if any, are left for RefuseOthers.
absl::Status ReadWindows(JsonFields& fields, const json& object, ModelConfig& config) {
  if (config.architecture == "llama") return absl::OkStatus();
  constexpr int64_t kDefaultWindow = 4096, kDefaultFullLayers = 28;
  int64_t window = 0, full_layers = 0;
  const bool null_window = object.contains("sliding_window") && object["sliding_window"].is_null();
  TOROID_RETURN_IF_ERROR(fields.IntOr("sliding_window", null_window ? 0 : kDefaultWindow, window));
  if (window == 0 && !null_window)
    return fields.Wrong("sliding_window", "must be at least 1 or null");
  std::vector<bool> sliding;
  TOROID_RETURN_IF_ERROR(ReadLayerTypes(fields, config, sliding));
  if (config.architecture == "mistral") {
    for (const bool layer : sliding) {
      if (layer != (window != 0)) {
        return absl::UnimplementedError(absl::StrCat(
            fields.where(), ": layer_types: a mistral model has sliding_window in every layer"));
      }
    }
    if (window != 0) config.windows.assign(size_t(config.layers), window);
    return absl::OkStatus();
  }
  bool use = false;
  TOROID_RETURN_IF_ERROR(fields.BoolOr("use_sliding_window", false, use));
  TOROID_RETURN_IF_ERROR(fields.IntOr("max_window_layers", kDefaultFullLayers, full_layers));
  if (!use) window = 0;
  if (sliding.empty()) {
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      sliding.push_back(window != 0 && layer >= full_layers);
    }
  }
  if (std::find(sliding.begin(), sliding.end(), true) == sliding.end()) return absl::OkStatus();
  if (window == 0) {
    return fields.Wrong("layer_types", "has sliding_attention, but no sliding window is in use");
  }
  for (const bool layer : sliding) config.windows.push_back(layer ? window : 0);
  return absl::OkStatus();
}

// Keys that exist for one value alone.
absl::Status ReadFixed(JsonFields& fields) {
  int64_t pretraining_tp = 1;
  TOROID_RETURN_IF_ERROR(fields.IntOr("pretraining_tp", 1, pretraining_tp));
  if (pretraining_tp == 1) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(fields.where(), ": pretraining_tp = ", pretraining_tp,
                   ": toroid computes products in one piece, as 1 says"));
}

}  // namespace

absl::StatusOr<ModelConfig> HuggingFaceConfig(absl::string_view text, const std::string& where) {
  TOROID_ASSIGN_OR_RETURN(const json object, ParseJsonObject(text, where));
  JsonFields fields(object, where);
  TOROID_ASSIGN_OR_RETURN(const Family* family, FindFamily(fields));
  ModelConfig config;
  config.architecture = std::string(family->model_type);
  if (family->model_type == "gpt2") {
    TOROID_RETURN_IF_ERROR(ReadGpt2(fields, *family, config));
  } else {
    TOROID_RETURN_IF_ERROR(ReadSizes(fields, *family, config));
    TOROID_RETURN_IF_ERROR(ReadWindows(fields, object, config));
    TOROID_RETURN_IF_ERROR(ReadRope(fields, config));
  }
  TOROID_RETURN_IF_ERROR(ReadFixed(fields));
  for (const absl::string_view key : kHarmless) fields.Ignore(key);
  TOROID_RETURN_IF_ERROR(fields.RefuseOthers());
  const absl::Status valid = config.Validate();
  if (!valid.ok()) {
    return absl::Status(valid.code(),
                        absl::StrCat(where, ": ", absl::string_view(valid.message())));
  }
  return config;
}

absl::StatusOr<GenerationDefaults> HuggingFaceGeneration(absl::string_view text,
                                                         const std::string& where) {
  TOROID_ASSIGN_OR_RETURN(const json object, ParseJsonObject(text, where));
  JsonFields fields(object, where);
  GenerationDefaults defaults;
  TOROID_RETURN_IF_ERROR(fields.Ints("eos_token_id", defaults.eos_ids));
  const std::pair<const char*, std::optional<int64_t>*> ints[] = {
      {"bos_token_id", &defaults.bos_id},
      {"pad_token_id", &defaults.pad_id},
      {"top_k", &defaults.top_k},
      {"max_new_tokens", &defaults.max_new_tokens}};
  for (const auto& [key, out] : ints) {
    int64_t value = 0;
    if (!fields.Has(key)) continue;
    TOROID_RETURN_IF_ERROR(fields.Int(key, value));
    *out = value;
  }
  const std::pair<const char*, std::optional<double>*> doubles[] = {
      {"temperature", &defaults.temperature},
      {"top_p", &defaults.top_p},
      {"min_p", &defaults.min_p},
      {"repetition_penalty", &defaults.repetition_penalty}};
  for (const auto& [key, out] : doubles) {
    double value = 0;
    if (!fields.Has(key)) continue;
    TOROID_RETURN_IF_ERROR(fields.DoubleOr(key, 0, value));
    *out = value;
  }
  if (fields.Has("do_sample")) {
    bool value = false;
    TOROID_RETURN_IF_ERROR(fields.BoolOr("do_sample", false, value));
    defaults.sample = value;
  }
  return defaults;
}

}  // namespace toroid
