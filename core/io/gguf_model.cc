// Opening a GGUF file as a model: file set, names, tokenizer. The configuration: gguf_config.cc.
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/io/gguf.h"
#include "core/io/gguf_config.h"
#include "core/io/model_source.h"
#include "core/status_macros.h"
#include "kernels/dequantize.h"

namespace toroid {
namespace {

constexpr int64_t kMaxSplits = 9999;

struct NamePair {
  absl::string_view gguf, ours;
};
constexpr NamePair kGlobalNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};
constexpr NamePair kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

// "blk.3.attn_q.bias" -> "model.layers.3.self_attn.q_proj.bias"; unknown names stay as they are,
// and CheckTensors refuses them.
std::string OurName(const std::string& name) {
  for (const NamePair& pair : kGlobalNames) {
    if (pair.gguf == name) return std::string(pair.ours);
  }
  absl::string_view rest = name;
  if (!absl::ConsumePrefix(&rest, "blk.")) return name;
  const size_t dot = rest.find('.');
  const size_t last = rest.rfind('.');
  if (dot == absl::string_view::npos || dot == last) return name;
  for (const NamePair& pair : kLayerNames) {
    if (pair.gguf == rest.substr(dot + 1, last - dot - 1)) {
      return absl::StrCat("model.layers.", rest.substr(0, dot), ".", pair.ours, rest.substr(last));
    }
  }
  return name;
}

// Adds the tensors of one file under our names. The tensor rope_freqs goes to the configuration.
absl::Status AddTensors(const GgufFile& file, int64_t index, ModelSource& source) {
  ModelConfig& config = source.config;
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == "rope_freqs.weight") {
      if (tensor.dtype != DType::kF32 || tensor.shape.size() != 1 ||
          tensor.shape[0] != config.head_dim / 2 || config.rope.kind != RopeScaling::Kind::kNone) {
        return absl::InvalidArgumentError(
            absl::StrCat(file.name(),
                         ": tensor rope_freqs.weight: must be f32, half a head long and alone, "
                         "without another rope scaling"));
      }
      std::vector<float> divisors(tensor.shape[0]);
      DecodeRow(tensor.dtype, tensor.data.data(), 0, tensor.shape[0], divisors.data());
      config.rope.kind = RopeScaling::Kind::kDivisors;
      config.rope.divisors.assign(divisors.begin(), divisors.end());
      continue;
    }
    StoredTensor stored{tensor.dtype, tensor.shape, tensor.data, index, 0};
    const std::string name = OurName(tensor.name);
    // llama.cpp turns neighbouring pairs in this architecture, so its converter interleaved the
    // rows.
    if (config.architecture == "llama") {
      if (absl::StrContains(name, ".self_attn.q_proj."))
        stored.interleaved_heads = config.query_heads;
      if (absl::StrContains(name, ".self_attn.k_proj.")) stored.interleaved_heads = config.kv_heads;
    }
    if (!source.tensors.emplace(name, std::move(stored)).second) {
      return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor ", tensor.name,
                                                     " is in another part of the model too"));
    }
  }
  return absl::OkStatus();
}

// Paths of all parts of a split file, given its first; one path for a file that is not split.
absl::StatusOr<std::vector<std::string>> Parts(const GgufFile& first, const std::string& path) {
  TOROID_ASSIGN_OR_RETURN(const int64_t count, first.IntOr("split.count", 1));
  TOROID_ASSIGN_OR_RETURN(const int64_t number, first.IntOr("split.no", 0));
  if (count <= 1) return std::vector<std::string>{path};
  if (count > kMaxSplits) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": split.count is ", count));
  }
  char suffix[40];
  const auto suffix_of = [&](int64_t part) {
    std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", int(part + 1), int(count));
    return absl::string_view(suffix);
  };
  absl::string_view stem = path;
  if (number != 0 || !absl::ConsumeSuffix(&stem, suffix_of(0))) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": part ", number + 1, " of a model in ", count,
                     " files: give the first, whose name ends in ", suffix_of(0)));
  }
  std::vector<std::string> paths;
  for (int64_t part = 0; part < count; ++part) paths.push_back(absl::StrCat(stem, suffix_of(part)));
  return paths;
}

absl::Status CheckPart(const GgufFile& file, int64_t part, int64_t count) {
  TOROID_ASSIGN_OR_RETURN(const int64_t number, file.Int("split.no"));
  TOROID_ASSIGN_OR_RETURN(const int64_t stated, file.Int("split.count"));
  if (number == part && stated == count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file.name(), ": says that it is part ", number + 1,
                                                 " of ", stated, ", its name says ", part + 1,
                                                 " of ", count));
}

}  // namespace

absl::StatusOr<ModelSource> OpenGguf(const std::string& path) {
  ModelSource source;
  source.path = path;
  source.format = "gguf";
  TOROID_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  TOROID_ASSIGN_OR_RETURN(const GgufFile first, GgufFile::Parse(mapped.bytes(), path));
  source.files.push_back(std::move(mapped));
  TOROID_ASSIGN_OR_RETURN(source.config, GgufModelConfig(first));
  source.config.name = path.substr(path.rfind('/') + 1);
  TOROID_ASSIGN_OR_RETURN(source.tokenizer.gguf, GgufTokenizer(first));
  const GgufVocabulary& vocabulary = source.tokenizer.gguf;
  const bool has_tokenizer = first.Has("tokenizer.ggml.model") || !vocabulary.tokens.empty();
  source.tokenizer.kind =
      has_tokenizer ? TokenizerSource::Kind::kGguf : TokenizerSource::Kind::kNone;
  source.generation.bos_id = vocabulary.bos_id;
  if (vocabulary.eos_id.has_value()) source.generation.eos_ids.push_back(*vocabulary.eos_id);
  // The end of a turn, where it differs from the end of the text.
  TOROID_ASSIGN_OR_RETURN(const int64_t turn, first.IntOr("tokenizer.ggml.eot_token_id", -1));
  if (turn >= 0 && turn < source.config.vocab && turn != vocabulary.eos_id) {
    source.generation.eos_ids.push_back(turn);
  }

  TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> paths, Parts(first, path));
  TOROID_RETURN_IF_ERROR(AddTensors(first, 0, source));
  for (size_t part = 1; part < paths.size(); ++part) {
    TOROID_ASSIGN_OR_RETURN(MappedFile next, MappedFile::Open(paths[part]));
    TOROID_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Parse(next.bytes(), paths[part]));
    source.files.push_back(std::move(next));
    TOROID_RETURN_IF_ERROR(CheckPart(file, int64_t(part), int64_t(paths.size())));
    TOROID_RETURN_IF_ERROR(AddTensors(file, int64_t(part), source));
    source.files.back().Release(file.header().data(), int64_t(file.header().size()));
  }
  // Which optional parts the model has is said by its tensors alone; CheckTensors then asks for the
  // same in every layer.
  source.config.qkv_bias |= source.tensors.contains("model.layers.0.self_attn.q_proj.bias");
  source.config.output_bias = source.tensors.contains("model.layers.0.self_attn.o_proj.bias");
  source.config.mlp_bias = source.tensors.contains("model.layers.0.mlp.gate_proj.bias");
  source.config.tied_embeddings = !source.tensors.contains("lm_head.weight");
  TOROID_RETURN_IF_ERROR(source.config.Validate());
  TOROID_RETURN_IF_ERROR(CheckTensors(source.config, source.tensors, path));
  source.files[0].Release(first.header().data(), int64_t(first.header().size()));
  return source;
}

}  // namespace toroid
