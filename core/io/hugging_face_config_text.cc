// config.json and generation_config.json, written: declared in hugging_face_config.h.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/io/hugging_face_config.h"
#include "core/io/model_config_json.h"
#include "core/model/rope.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::ordered_json;
using Kind = RopeScaling::Kind;

const char* ClassOf(const std::string& architecture) {
  if (architecture == "llama") return "LlamaForCausalLM";
  if (architecture == "mistral") return "MistralForCausalLM";
  if (architecture == "qwen2") return "Qwen2ForCausalLM";
  if (architecture == "qwen3") return "Qwen3ForCausalLM";
  if (architecture == "gpt") return "GPT2LMHeadModel";
  return nullptr;
}

// GGUF keeps Llama 3's scaling as divisors of the frequencies; transformers wants its parameters.
// The largest divisor is the factor; the length before scaling is a power of two in all models that
// were published, with 1 and 4 as the two frequency factors.
bool FindLlama3(ModelConfig& config) {
  const std::vector<double> wanted = Rope(config, config.context).inv_freq;
  ModelConfig tried = config;
  tried.rope = RopeScaling();
  tried.rope.kind = Kind::kLlama3;
  tried.rope.factor = *std::max_element(config.rope.divisors.begin(), config.rope.divisors.end());
  for (int64_t length = 32; length <= int64_t{1} << 20; length *= 2) {
    tried.rope.original_context = length;
    const std::vector<double> found = Rope(tried, tried.context).inv_freq;
    bool equal = true;
    for (size_t i = 0; i < wanted.size(); ++i) {
      equal = equal && std::abs(found[i] - wanted[i]) <= 1e-6 * wanted[i];
    }
    if (!equal) continue;
    config = tried;
    return true;
  }
  return false;
}

ordered_json RopeJson(const ModelConfig& config) {
  const RopeScaling& rope = config.rope;
  switch (rope.kind) {
    case Kind::kNone:
    case Kind::kDivisors:
      return nullptr;
    case Kind::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case Kind::kDynamic:
      return {{"rope_type", "dynamic"}, {"factor", rope.factor}};
    case Kind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_context}};
    case Kind::kYarn:
      break;
  }
  ordered_json yarn = {{"rope_type", "yarn"},
                       {"factor", rope.factor},
                       {"beta_fast", rope.beta_fast},
                       {"beta_slow", rope.beta_slow},
                       {"original_max_position_embeddings", rope.original_context},
                       {"truncate", rope.truncate}};
  if (rope.attention_factor != 0) yarn["attention_factor"] = rope.attention_factor;
  if (rope.mscale != 0) yarn["mscale"] = rope.mscale;
  if (rope.mscale_all_dim != 0) yarn["mscale_all_dim"] = rope.mscale_all_dim;
  return yarn;
}

// Linear and dynamic scaling state the length before it.
int64_t StatedContext(const ModelConfig& config) {
  const RopeScaling& rope = config.rope;
  if (rope.kind != Kind::kLinear && rope.kind != Kind::kDynamic) return config.context;
  if (rope.original_context > 0) return rope.original_context;
  return std::max<int64_t>(1, int64_t(double(config.context) / rope.factor));
}

void AddWindows(const ModelConfig& config, ordered_json& object) {
  const auto most = std::max_element(config.windows.begin(), config.windows.end());
  const int64_t window = most == config.windows.end() ? 0 : *most;
  if (config.architecture == "llama") return;
  object["sliding_window"] = window == 0 ? ordered_json() : ordered_json(window);
  if (config.architecture == "mistral") return;
  object["use_sliding_window"] = window != 0;
  if (window == 0) return;
  const auto first = std::find(config.windows.begin(), config.windows.end(), window);
  object["max_window_layers"] = first - config.windows.begin();
  for (const int64_t of_layer : config.windows) {
    object["layer_types"].push_back(of_layer == 0 ? "full_attention" : "sliding_attention");
  }
}

// What reading the text gives differs from the configuration in no field that computes anything.
absl::Status CheckText(const std::string& text, ModelConfig config, const std::string& path) {
  absl::StatusOr<ModelConfig> again = HuggingFaceConfig(text, "config.json");
  if (!again.ok()) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": ", ClassOf(config.architecture),
                     " of transformers has no such shape: ", again.status().message()));
  }
  ModelConfig& read = *again;
  if (config.rope.kind == Kind::kNone || config.rope.kind == Kind::kLinear) {
    // These have no use for the length that the model was made for.
    read.context = config.context;
    read.rope.original_context = config.rope.original_context;
  }
  // All dense is all dense.
  if (std::count(config.windows.begin(), config.windows.end(), 0) ==
      int64_t(config.windows.size())) {
    config.windows.clear();
  }
  const std::string difference = FirstDifference(config, read);
  if (difference.empty()) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(path, ": ", ClassOf(config.architecture),
                                               " of transformers has no ",
                                               difference.substr(0, difference.find(", here"))));
}

// As transformers has it: a number, or a list of several.
void AddEos(const std::vector<int64_t>& ids, ordered_json& object) {
  if (ids.size() == 1) object["eos_token_id"] = ids[0];
  if (ids.size() > 1) object["eos_token_id"] = ids;
}

// Of Llama, Mistral, Qwen2 and Qwen3; what all families have is added by the caller.
ordered_json LlamaJson(const ModelConfig& config, const char* name) {
  ordered_json object = {{"architectures", {name}},
                         {"model_type", config.architecture},
                         {"hidden_size", config.dim},
                         {"intermediate_size", config.ffn},
                         {"num_hidden_layers", config.layers},
                         {"num_attention_heads", config.query_heads},
                         {"num_key_value_heads", config.kv_heads},
                         {"head_dim", config.head_dim},
                         {"vocab_size", config.vocab},
                         {"max_position_embeddings", StatedContext(config)},
                         {"rms_norm_eps", config.norm_epsilon},
                         {"hidden_act", "silu"},
                         {"rope_theta", config.rope_base},
                         {"rope_scaling", RopeJson(config)}};
  if (config.architecture == "llama" || config.architecture == "qwen3") {
    object["attention_bias"] = config.qkv_bias;
  }
  if (config.architecture == "llama") object["mlp_bias"] = config.mlp_bias;
  AddWindows(config, object);
  return object;
}

// transformers takes 50256 for the ids of begin and end that are not said: null says that there
// are none.
ordered_json Gpt2Json(const ModelConfig& config, const char* name) {
  return {{"architectures", {name}},
          {"model_type", "gpt2"},
          {"n_embd", config.dim},
          {"n_inner", config.ffn},
          {"n_layer", config.layers},
          {"n_head", config.query_heads},
          {"n_positions", config.context},
          {"n_ctx", config.context},
          {"vocab_size", config.vocab},
          {"layer_norm_epsilon", config.norm_epsilon},
          {"activation_function", "gelu_new"},
          {"scale_attn_weights", true},
          {"bos_token_id", nullptr},
          {"eos_token_id", nullptr}};
}

}  // namespace

absl::StatusOr<std::string> HuggingFaceConfigText(const ModelSource& source, DType dtype) {
  ModelConfig config = source.config;
  const char* name = ClassOf(config.architecture);
  if (name == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat(source.path, ": models of architecture ", config.architecture,
                     " have no class in transformers: keep it as a checkpoint"));
  }
  if (config.rope.kind == Kind::kDivisors && !FindLlama3(config)) {
    return absl::UnimplementedError(
        absl::StrCat(source.path,
                     ": its tensor rope_freqs is not that of a Llama 3 model, and transformers "
                     "takes no other"));
  }
  ordered_json object =
      config.architecture == "gpt" ? Gpt2Json(config, name) : LlamaJson(config, name);
  object["tie_word_embeddings"] = config.tied_embeddings;
  object["torch_dtype"] = dtype == DType::kBF16 ? "bfloat16" : "float32";
  if (source.generation.bos_id) object["bos_token_id"] = *source.generation.bos_id;
  AddEos(source.generation.eos_ids, object);
  const std::string text = absl::StrCat(object.dump(2), "\n");
  TOROID_RETURN_IF_ERROR(CheckText(text, config, source.path));
  return text;
}
std::string HuggingFaceGenerationText(const GenerationDefaults& generation) {
  ordered_json object = ordered_json::object();
  const auto add = [&](const char* key, const auto& value) {
    if (value) object[key] = *value;
  };
  add("bos_token_id", generation.bos_id);
  AddEos(generation.eos_ids, object);
  add("pad_token_id", generation.pad_id);
  add("do_sample", generation.sample);
  add("temperature", generation.temperature);
  add("top_k", generation.top_k);
  add("top_p", generation.top_p);
  add("min_p", generation.min_p);
  add("repetition_penalty", generation.repetition_penalty);
  add("max_new_tokens", generation.max_new_tokens);
  return absl::StrCat(object.dump(2), "\n");
}

}  // namespace toroid
