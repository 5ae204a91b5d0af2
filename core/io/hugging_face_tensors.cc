#include "core/io/hugging_face_tensors.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr char kPrefix[] = "transformer.";

bool IsVector(const ParamSpec& spec) { return spec.group == "norm" || spec.group == "bias"; }
bool IsGpt2(const ModelConfig& config) { return config.architecture == "gpt"; }

// "model.layers.3.self_attn.q_proj.weight" ->
// "transformer.h.3.attn.c_attn.weight".
std::string Gpt2Name(const ParamSpec& spec) {
  static const auto& of_layer = *new std::map<std::string, std::string>{
      {"input_layernorm", "ln_1"},         {"post_attention_layernorm", "ln_2"},
      {"self_attn.q_proj", "attn.c_attn"}, {"self_attn.k_proj", "attn.c_attn"},
      {"self_attn.v_proj", "attn.c_attn"}, {"self_attn.o_proj", "attn.c_proj"},
      {"mlp.up_proj", "mlp.c_fc"},         {"mlp.down_proj", "mlp.c_proj"}};
  static const auto& others = *new std::map<std::string, std::string>{
      {"model.embed_tokens", "wte"}, {"model.embed_positions", "wpe"}, {"model.norm", "ln_f"}};
  const size_t dot = spec.name.rfind('.');
  const std::string kind = spec.name.substr(dot);  // ".weight", ".bias"
  std::string module = spec.name.substr(0, dot);
  if (spec.layer < 0) {
    const auto found = others.find(module);
    return found == others.end() ? spec.name : absl::StrCat(kPrefix, found->second, kind);
  }
  module.erase(0, absl::StrCat("model.layers.", spec.layer, ".").size());
  const auto found = of_layer.find(module);
  TOROID_CHECK_MSG(found != of_layer.end(), spec.name);
  return absl::StrCat(kPrefix, "h.", spec.layer, ".", found->second, kind);
}

int64_t Outputs(const ParamSpec& spec) { return IsVector(spec) ? spec.cols : spec.rows; }

// The part of `whole` from output `first` on.
StoredTensor PartOf(const StoredTensor& whole, const HuggingFaceTensor& tensor,
                    const ParamSpec& part, int64_t first) {
  StoredTensor stored = whole;
  if (IsVector(part)) {
    stored.shape = {part.cols};
    stored.data = whole.data.subspan(size_t(RowBytes(whole.dtype, first)),
                                     size_t(RowBytes(whole.dtype, part.cols)));
  } else if (tensor.transposed) {
    stored.shape = {part.rows, part.cols};
    stored.stored_cols = tensor.shape.back();
    stored.first_stored_col = first;
  }
  return stored;
}

}  // namespace

std::vector<HuggingFaceTensor> HuggingFaceTensors(const ModelConfig& config) {
  std::vector<HuggingFaceTensor> tensors;
  std::map<std::string, size_t> places;
  for (ParamSpec& spec : ParamTable(config)) {
    if (!spec.alias.empty()) continue;
    const std::string name = IsGpt2(config) ? Gpt2Name(spec) : spec.name;
    const auto [place, fresh] = places.emplace(name, tensors.size());
    if (fresh) tensors.push_back({name, {}, {}, false});
    HuggingFaceTensor& tensor = tensors[place->second];
    tensor.transposed = IsGpt2(config) && spec.layer >= 0 && !IsVector(spec);
    const int64_t outputs = (fresh ? 0 : tensor.shape[tensor.transposed]) + Outputs(spec);
    tensor.shape = IsVector(spec)      ? std::vector<int64_t>{outputs}
                   : tensor.transposed ? std::vector<int64_t>{spec.cols, outputs}
                                       : std::vector<int64_t>{outputs, spec.cols};
    tensor.parts.push_back(std::move(spec));
  }
  return tensors;
}

bool IsNoWeight(const ModelConfig& config, absl::string_view name) {
  if (!IsGpt2(config)) return absl::EndsWith(name, ".rotary_emb.inv_freq");
  return absl::EndsWith(name, ".attn.bias") || absl::EndsWith(name, ".attn.masked_bias");
}

absl::Status NameAsParameters(const ModelConfig& config, const std::string& where,
                              TensorIndex& tensors) {
  if (!IsGpt2(config)) return absl::OkStatus();
  TensorIndex read;
  for (auto& [name, tensor] : tensors) {
    const bool head = absl::StartsWith(name, "lm_head.") || absl::StartsWith(name, kPrefix);
    const std::string full = head ? name : absl::StrCat(kPrefix, name);
    if (!read.emplace(full, std::move(tensor)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": tensor ", full, " is there twice, with and without its prefix"));
    }
  }
  tensors.clear();
  for (const HuggingFaceTensor& tensor : HuggingFaceTensors(config)) {
    const auto found = read.find(tensor.name);
    if (found == read.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": tensor ", tensor.name, " is missing"));
    }
    if (found->second.shape != tensor.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": tensor ", tensor.name, " has shape [", absl::StrJoin(found->second.shape, ", "),
          "], the configuration says [", absl::StrJoin(tensor.shape, ", "), "]"));
    }
    int64_t first = 0;
    for (const ParamSpec& part : tensor.parts) {
      tensors[part.name] = PartOf(found->second, tensor, part, first);
      first += Outputs(part);
    }
    read.erase(found);
  }
  tensors.merge(read);
  return absl::OkStatus();
}

}  // namespace toroid
