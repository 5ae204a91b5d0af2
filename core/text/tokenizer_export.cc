#include "core/text/tokenizer_export.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/gguf_family.h"
#include "core/text/text_steps.h"
#include "core/text/tokenizer.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

using nlohmann::ordered_json;

// Values of tokenizer.ggml.token_type.
enum TokenType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

constexpr char kUnderline[] = "\xE2\x96\x81";

int TypeOf(const GgufVocabulary& file, size_t id) {
  return file.token_types.empty() ? kNormal : file.token_types[id];
}

ordered_json Sequence(const char* list, ordered_json steps) {
  if (steps.empty()) return nullptr;
  if (steps.size() == 1) return steps[0];
  return {{"type", "Sequence"}, {list, std::move(steps)}};
}

ordered_json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

ordered_json Bpe() {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", ordered_json::object()},
          {"merges", ordered_json::array()}};
}

// A tokenizer.json without steps.
ordered_json Empty() {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", ordered_json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", nullptr},
          {"model", Bpe()}};
}

std::vector<TokenizerFile> Files(const ordered_json& tokenizer, const ordered_json& config) {
  return {{"tokenizer.json", absl::StrCat(tokenizer.dump(1), "\n")},
          {"tokenizer_config.json", absl::StrCat(config.dump(1), "\n")}};
}

ordered_json Config() {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
}

std::vector<TokenizerFile> BytesFiles() {
  ordered_json file = Empty();
  file["pre_tokenizer"] = ByteLevel(false);
  file["decoder"] = ByteLevel(false);
  for (int b = 0; b < 256; ++b) {
    std::string text;
    AppendUtf8(ByteToCharacter(static_cast<unsigned char>(b)), &text);
    file["model"]["vocab"][text] = b;
  }
  return Files(file, Config());
}

void FillByteLevel(const GgufVocabulary& gguf, const GgufFamily& family, ordered_json& file) {
  if (family.nfc) file["normalizer"] = {{"type", "NFC"}};
  ordered_json steps = ordered_json::array();
  if (family.digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  if (!family.pattern.empty()) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", std::string(family.pattern)}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(ByteLevel(family.pattern.empty()));
  file["pre_tokenizer"] = Sequence("pretokenizers", std::move(steps));
  file["decoder"] = ByteLevel(true);
  file["model"]["ignore_merges"] = family.ignore_merges;
  for (const std::string& merge : gguf.merges) {
    const size_t space = merge.find(' ');
    file["model"]["merges"].push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
}

// Every way to cut a token into two tokens is a merge, the best score first (tokenizer_gguf.cc).
ordered_json MergesByScore(const GgufVocabulary& gguf) {
  absl::flat_hash_map<std::string_view, int32_t> ids;
  std::vector<int32_t> order;
  for (size_t id = 0; id < gguf.tokens.size(); ++id) {
    ids.emplace(gguf.tokens[id], int32_t(id));
    const int type = TypeOf(gguf, id);
    if (type == kNormal || type == kUserDefined || type == kUnused) order.push_back(int32_t(id));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return gguf.scores[a] > gguf.scores[b]; });
  ordered_json merges = ordered_json::array();
  for (const int32_t id : order) {
    const std::string_view text = gguf.tokens[id];
    for (size_t cut = 0; cut < text.size();) {
      cut += Utf8Length(text[cut]);
      if (cut >= text.size()) break;
      const std::string_view left = text.substr(0, cut), right = text.substr(cut);
      if (ids.contains(left) && ids.contains(right)) {
        merges.push_back({std::string(left), std::string(right)});
      }
    }
  }
  return merges;
}

void FillSentencePiece(const GgufVocabulary& gguf, ordered_json& file) {
  const bool prefix = gguf.add_space_prefix.value_or(true);
  ordered_json steps = ordered_json::array();
  if (prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kUnderline}});
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kUnderline}});
  file["normalizer"] = Sequence("normalizers", std::move(steps));
  steps = ordered_json::array();
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", kUnderline}}}, {"content", " "}});
  steps.push_back({{"type", "ByteFallback"}});
  steps.push_back({{"type", "Fuse"}});
  if (prefix) {
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  file["decoder"] = Sequence("decoders", std::move(steps));
  ordered_json& model = file["model"];
  model["byte_fallback"] = true;
  model["fuse_unk"] = true;
  for (size_t id = 0; id < gguf.tokens.size() && model["unk_token"].is_null(); ++id) {
    if (gguf.unk_id ? size_t(*gguf.unk_id) == id : TypeOf(gguf, id) == kUnknown) {
      model["unk_token"] = gguf.tokens[id];
    }
  }
  model["merges"] = MergesByScore(gguf);
}

void FillTokens(const GgufVocabulary& gguf, ordered_json& file) {
  ordered_json::object_t vocabulary;
  vocabulary.reserve(gguf.tokens.size());
  for (size_t id = 0; id < gguf.tokens.size(); ++id) {
    vocabulary.emplace_back(gguf.tokens[id], id);  // FromGguf has seen that no two are equal
    const int type = TypeOf(gguf, id);
    const bool special = type == kControl || type == kUnknown;
    if ((!special && type != kUserDefined) || gguf.tokens[id].empty()) continue;
    file["added_tokens"].push_back({{"id", id},
                                    {"content", gguf.tokens[id]},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", special}});
  }
  file["model"]["vocab"] = std::move(vocabulary);
}

// What is put around every text: BOS, EOS.
ordered_json Template(const GgufVocabulary& gguf, bool add_bos) {
  ordered_json single = ordered_json::array(), pair = ordered_json::array(),
               tokens = ordered_json::object();
  const auto add = [&](int32_t id, int sequence) {
    const std::string& text = gguf.tokens[size_t(id)];
    const ordered_json token = {{"SpecialToken", {{"id", text}, {"type_id", sequence}}}};
    if (sequence == 0) single.push_back(token);
    pair.push_back(token);
    tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  for (int sequence = 0; sequence < 2; ++sequence) {
    if (add_bos) add(*gguf.bos_id, sequence);
    const ordered_json text = {
        {"Sequence", {{"id", sequence == 0 ? "A" : "B"}, {"type_id", sequence}}}};
    if (sequence == 0) single.push_back(text);
    pair.push_back(text);
    if (gguf.add_eos.value_or(false) && gguf.eos_id) add(*gguf.eos_id, sequence);
  }
  if (tokens.empty()) return nullptr;
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(tokens)}};
}

absl::StatusOr<std::vector<TokenizerFile>> GgufFiles(const GgufVocabulary& gguf) {
  TOROID_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::FromGguf(gguf));  // all is as it must be
  ordered_json file = Empty();
  if (gguf.model == "gpt2") {
    FillByteLevel(gguf, *FindGgufFamily(gguf.pre), file);
  } else {
    FillSentencePiece(gguf, file);
  }
  FillTokens(gguf, file);
  file["post_processor"] = Template(gguf, tokenizer->adds_bos());
  ordered_json config = Config();
  const std::pair<const char*, std::optional<int32_t>> names[] = {
      {"bos_token", gguf.bos_id}, {"eos_token", gguf.eos_id}, {"unk_token", gguf.unk_id}};
  for (const auto& [name, id] : names) {
    if (id) config[name] = gguf.tokens[size_t(*id)];
  }
  if (!gguf.chat_template.empty()) config["chat_template"] = gguf.chat_template;
  try {
    return Files(file, config);
  } catch (const ordered_json::type_error&) {  // what JSON cannot hold
    return absl::InvalidArgumentError("GGUF tokenizer: a merge or the chat template is not UTF-8");
  }
}

}  // namespace

absl::StatusOr<std::vector<TokenizerFile>> TokenizerFiles(const TokenizerSource& source) {
  std::vector<TokenizerFile> files;
  switch (source.kind) {
    case TokenizerSource::Kind::kBytes:
      return BytesFiles();
    case TokenizerSource::Kind::kGguf:
      return GgufFiles(source.gguf);
    case TokenizerSource::Kind::kHuggingFace:
      files = {{"tokenizer.json", source.tokenizer_json},
               {"tokenizer_config.json", source.tokenizer_config_json},
               {"chat_template.jinja", source.chat_template}};
      break;
    case TokenizerSource::Kind::kNone:
      break;
  }
  files.erase(std::remove_if(files.begin(), files.end(),
                             [](const TokenizerFile& file) { return file.text.empty(); }),
              files.end());
  return files;
}

}  // namespace toroid
