// Opening a Hugging Face directory as a model: file set, tensors, tokenizer texts.
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/io/hugging_face_config.h"
#include "core/io/hugging_face_tensors.h"
#include "core/io/json_fields.h"
#include "core/io/model_source.h"
#include "core/io/safetensors.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfig = int64_t{1} << 20;
constexpr int64_t kMaxIndex = int64_t{100} << 20;
constexpr int64_t kMaxTokenizer = int64_t{256} << 20;
constexpr const char* kIndexName = "model.safetensors.index.json";

// The file's text, empty if there is no such file.
absl::Status ReadOptional(const std::string& path, int64_t limit, std::string& out) {
  absl::StatusOr<std::string> text = ReadTextFile(path, limit);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  out = *std::move(text);
  return absl::OkStatus();
}

// Which file each tensor lies in, as the index says. File names are names alone: an index cannot
// reach outside its directory.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& text,
                                                             const std::string& where) {
  TOROID_ASSIGN_OR_RETURN(const json object, ParseJsonObject(text, where));
  const auto map = object.find("weight_map");
  if (map == object.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": weight_map is missing or empty"));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": weight_map of ", tensor, " is no text"));
    }
    const std::string name = file.get<std::string>();
    if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos ||
        !absl::EndsWith(name, ".safetensors")) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": weight_map of ", tensor, " is ",
                                                     Shown(file), ", no *.safetensors file name"));
    }
    files[tensor] = name;
  }
  return files;
}

// Maps one file and adds its tensors. With an index each of them must be listed there under this
// file.
absl::Status AddFile(const std::string& path, const std::string& name,
                     const std::map<std::string, std::string>* index, ModelSource& source) {
  TOROID_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  TOROID_ASSIGN_OR_RETURN(const std::vector<SafetensorsTensor> tensors,
                          ParseSafetensors(file.bytes(), path));
  const uint8_t* data_begin = file.bytes().data() + file.bytes().size();
  for (const SafetensorsTensor& tensor : tensors) {
    data_begin = std::min(data_begin, tensor.data.data());
    if (index != nullptr) {
      const auto listed = index->find(tensor.name);
      if (listed == index->end() || listed->second != name) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": tensor ", tensor.name, " is extra: ", kIndexName,
            listed == index->end() ? " does not list it" : " says that it lies in another file"));
      }
    }
    if (IsNoWeight(source.config, tensor.name)) continue;
    if (tensor.shape.empty() || (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF64 &&
                                 tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", tensor.name, " holds ",
          tensor.shape.empty() ? "a single number" : Info(tensor.dtype).name, ", no weights"));
    }
    source.tensors[tensor.name] = {tensor.dtype, tensor.shape, tensor.data,
                                   int64_t(source.files.size()), 0};
  }
  file.Release(file.bytes().data(), data_begin - file.bytes().data());
  source.files.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status AddWeights(const std::string& directory, ModelSource& source) {
  const std::string single = "model.safetensors";
  struct stat info;
  if (::stat(absl::StrCat(directory, "/", single).c_str(), &info) == 0) {
    return AddFile(absl::StrCat(directory, "/", single), single, nullptr, source);
  }
  const std::string index_path = absl::StrCat(directory, "/", kIndexName);
  std::string text;
  TOROID_RETURN_IF_ERROR(ReadOptional(index_path, kMaxIndex, text));
  if (text.empty()) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": neither ", single, " nor ", kIndexName,
                     " is there; toroid reads weights from safetensors files alone"));
  }
  TOROID_ASSIGN_OR_RETURN(const auto index, ReadIndex(text, index_path));
  std::vector<std::string> names;
  for (const auto& [tensor, file] : index) names.push_back(file);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (const std::string& name : names) {
    TOROID_RETURN_IF_ERROR(AddFile(absl::StrCat(directory, "/", name), name, &index, source));
  }
  for (const auto& [tensor, file] : index) {
    if (!source.tensors.contains(tensor) && !IsNoWeight(source.config, tensor)) {
      return absl::InvalidArgumentError(absl::StrCat(directory, "/", file, ": tensor ", tensor,
                                                     " is missing, which ", kIndexName,
                                                     " says lies here"));
    }
  }
  return absl::OkStatus();
}

// A tied model may come with an output head all the same. transformers ties them if they are equal
// and keeps both if they differ; so do we. Reads both, in pieces.
void ResolveTiedHead(ModelSource& source) {
  const auto head = source.tensors.find("lm_head.weight");
  const auto embedding = source.tensors.find("model.embed_tokens.weight");
  if (!source.config.tied_embeddings || head == source.tensors.end()) return;
  if (embedding == source.tensors.end()) {
    // The head alone is there: it is the embedding too.
    source.tensors["model.embed_tokens.weight"] = head->second;
    source.tensors.erase("lm_head.weight");
    return;
  }
  const StoredTensor &a = head->second, &b = embedding->second;
  bool equal = a.dtype == b.dtype && a.shape == b.shape;
  constexpr size_t kPiece = 4 << 20;
  for (size_t at = 0; equal && at < a.data.size(); at += kPiece) {
    const auto left = a.data.subspan(at, kPiece), right = b.data.subspan(at, kPiece);
    equal = std::memcmp(left.data(), right.data(), left.size()) == 0;
    source.files[a.file].Release(left.data(), int64_t(left.size()));
    source.files[b.file].Release(right.data(), int64_t(right.size()));
  }
  if (equal) {
    source.tensors.erase(head);
  } else {
    source.config.tied_embeddings = false;
  }
}

absl::Status AddTexts(const std::string& directory, const std::string& config_text,
                      ModelSource& source) {
  const std::string generation_path = absl::StrCat(directory, "/generation_config.json");
  std::string generation;
  TOROID_RETURN_IF_ERROR(ReadOptional(generation_path, kMaxConfig, generation));
  // config.json's own keys count where the other file says nothing of where to stop.
  TOROID_ASSIGN_OR_RETURN(source.generation,
                          HuggingFaceGeneration(config_text, directory + "/config.json"));
  if (!generation.empty()) {
    const std::vector<int64_t> eos_ids = source.generation.eos_ids;
    TOROID_ASSIGN_OR_RETURN(source.generation, HuggingFaceGeneration(generation, generation_path));
    if (source.generation.eos_ids.empty()) source.generation.eos_ids = eos_ids;
  }
  TokenizerSource& tokenizer = source.tokenizer;
  TOROID_RETURN_IF_ERROR(
      ReadOptional(directory + "/tokenizer.json", kMaxTokenizer, tokenizer.tokenizer_json));
  TOROID_RETURN_IF_ERROR(ReadOptional(directory + "/tokenizer_config.json", kMaxTokenizer,
                                      tokenizer.tokenizer_config_json));
  TOROID_RETURN_IF_ERROR(
      ReadOptional(directory + "/chat_template.jinja", kMaxConfig, tokenizer.chat_template));
  tokenizer.kind = tokenizer.tokenizer_json.empty() ? TokenizerSource::Kind::kNone
                                                    : TokenizerSource::Kind::kHuggingFace;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSource> OpenHuggingFace(const std::string& given) {
  ModelSource source;
  source.path = given;
  source.format = "hugging face";
  std::string directory = given;
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  const std::string config_path = directory + "/config.json";
  std::string text;
  TOROID_RETURN_IF_ERROR(ReadOptional(config_path, kMaxConfig, text));
  if (text.empty()) {
    return absl::NotFoundError(
        absl::StrCat(config_path,
                     ": no such file: a Hugging Face model directory has one; a GGUF "
                     "file is given by its own path"));
  }
  TOROID_ASSIGN_OR_RETURN(source.config, HuggingFaceConfig(text, config_path));
  source.config.name = directory.substr(directory.rfind('/') + 1);
  TOROID_RETURN_IF_ERROR(AddWeights(directory, source));
  TOROID_RETURN_IF_ERROR(NameAsParameters(source.config, directory, source.tensors));
  ResolveTiedHead(source);
  TOROID_RETURN_IF_ERROR(CheckTensors(source.config, source.tensors, directory));
  TOROID_RETURN_IF_ERROR(AddTexts(directory, text, source));
  return source;
}

}  // namespace toroid
