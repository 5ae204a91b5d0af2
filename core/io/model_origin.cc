#include "core/io/model_origin.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/io/json_fields.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;
using Kind = TokenizerSource::Kind;

// Names of the kinds, in their order.
constexpr const char* kKinds[] = {"bytes", "hugging face", "gguf", "none"};

// The one list of fields of each struct; a field that is absent in the file keeps its default.
template <typename Generation, typename Visit>
void VisitGeneration(Generation& generation, Visit&& visit) {
  visit("eos_ids", generation.eos_ids);
  visit("bos_id", generation.bos_id);
  visit("pad_id", generation.pad_id);
  visit("sample", generation.sample);
  visit("temperature", generation.temperature);
  visit("top_p", generation.top_p);
  visit("min_p", generation.min_p);
  visit("repetition_penalty", generation.repetition_penalty);
  visit("top_k", generation.top_k);
  visit("max_new_tokens", generation.max_new_tokens);
}

template <typename Texts, typename Visit>
void VisitTexts(Texts& tokenizer, Visit&& visit) {
  visit("tokenizer_json", tokenizer.tokenizer_json);
  visit("tokenizer_config_json", tokenizer.tokenizer_config_json);
  visit("chat_template", tokenizer.chat_template);
}

template <typename Vocabulary, typename Visit>
void VisitVocabulary(Vocabulary& gguf, Visit&& visit) {
  visit("model", gguf.model);
  visit("pre", gguf.pre);
  visit("tokens", gguf.tokens);
  visit("scores", gguf.scores);
  visit("token_types", gguf.token_types);
  visit("merges", gguf.merges);
  visit("bos_id", gguf.bos_id);
  visit("eos_id", gguf.eos_id);
  visit("unk_id", gguf.unk_id);
  visit("add_bos", gguf.add_bos);
  visit("add_eos", gguf.add_eos);
  visit("add_space_prefix", gguf.add_space_prefix);
  visit("chat_template", gguf.chat_template);
}

struct Writer {
  json object = json::object();

  template <typename T>
  void operator()(const char* key, const T& value) {
    if (!value.empty()) object[key] = value;
  }
  template <typename T>
  void operator()(const char* key, const std::optional<T>& value) {
    if (value) object[key] = *value;
  }
};

// Fields of the object `key` of `root`; all of them must be known.
class FieldReader {
 public:
  FieldReader(const json& root, const char* key, const std::string& where)
      : where_(absl::StrCat(where, ": ", key)) {
    const auto found = root.find(key);
    if (found == root.end() || !found->is_object()) {
      status_ = absl::DataLossError(absl::StrCat(where_, ": missing, or no object"));
    } else {
      object_ = &*found;
    }
  }
  template <typename T>
  void operator()(const char* key, T& out) {
    if (!status_.ok()) return;
    const auto found = object_->find(key);
    if (found == object_->end()) return;
    ++seen_;
    if (!TakeJson(*found, out)) {
      status_ = absl::DataLossError(
          absl::StrCat(where_, ": ", key, " = ", Shown(*found), ": of another kind"));
    }
  }
  absl::Status Done() const {
    if (!status_.ok() || seen_ == object_->size()) return status_;
    return absl::DataLossError(
        absl::StrCat(where_, ": it has fields that this toroid does not know"));
  }

 private:
  const std::string where_;
  const json* object_ = nullptr;
  size_t seen_ = 0;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::string> OriginText(const ModelSource& source) {
  const TokenizerSource& tokenizer = source.tokenizer;
  for (const float score : tokenizer.gguf.scores) {
    if (std::isfinite(score)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(source.path, ": the tokenizer has a score that is not finite"));
  }
  Writer generation, texts, vocabulary;
  VisitGeneration(source.generation, generation);
  VisitTexts(tokenizer, texts);
  VisitVocabulary(tokenizer.gguf, vocabulary);
  const json object = {{"generation", std::move(generation.object)},
                       {"tokenizer", kKinds[int(tokenizer.kind)]},
                       {"texts", std::move(texts.object)},
                       {"gguf", std::move(vocabulary.object)}};
  try {
    return object.dump();
  } catch (const json::type_error&) {  // what JSON cannot hold
    return absl::InvalidArgumentError(
        absl::StrCat(source.path, ": the tokenizer holds text that is not UTF-8"));
  }
}

absl::Status ReadOrigin(absl::string_view text, const std::string& where, ModelSource& out) {
  const absl::StatusOr<json> root = ParseJsonObject(text, where);
  if (!root.ok()) return absl::DataLossError(root.status().message());
  FieldReader generation(*root, "generation", where);
  VisitGeneration(out.generation, generation);
  TOROID_RETURN_IF_ERROR(generation.Done());
  FieldReader texts(*root, "texts", where);
  VisitTexts(out.tokenizer, texts);
  TOROID_RETURN_IF_ERROR(texts.Done());
  FieldReader vocabulary(*root, "gguf", where);
  VisitVocabulary(out.tokenizer.gguf, vocabulary);
  TOROID_RETURN_IF_ERROR(vocabulary.Done());
  const auto kind = root->find("tokenizer");
  for (size_t i = 0; i < std::size(kKinds); ++i) {
    if (kind == root->end() || *kind != json(kKinds[i])) continue;
    out.tokenizer.kind = Kind(i);
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(where, ": tokenizer: missing, or of no known kind"));
}

}  // namespace toroid
