// tokenizer.json and tokenizer_config.json -> Tokenizer. Every "type" that is met and not listed
// here is refused by name.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/json_scan.h"
#include "core/text/tokenizer_parts.h"

namespace toroid {
namespace {

using nlohmann::json;

constexpr size_t kMaxSteps = 64;              // of one kind
constexpr size_t kMaxAddedTokenBytes = 1024;  // bounds the matcher's work per character
constexpr size_t kMaxTemplateTokens = 1024;

absl::Status Bad(std::string what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", what));
}
absl::Status Refused(std::string what) {
  return absl::UnimplementedError(absl::StrCat("tokenizer.json: ", what, " is not implemented"));
}

// The member `name` of an object; null if there is none or this is no object.
const json& Member(const json& object, const char* name) {
  static const json* null = new json();
  if (!object.is_object()) return *null;
  const auto found = object.find(name);
  return found == object.end() ? *null : *found;
}
std::string String(const json& object, const char* name, std::string otherwise = "") {
  const json& value = Member(object, name);
  return value.is_string() ? value.get<std::string>() : otherwise;
}
bool Bool(const json& object, const char* name, bool otherwise = false) {
  const json& value = Member(object, name);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}
int64_t Integer(const json& object, const char* name, int64_t otherwise) {
  const json& value = Member(object, name);
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

// Calls `each` for every step, looking into Sequences; `list` names their member.
template <typename Each>
absl::Status ForEachStep(const json& step, const char* list, size_t* count, Each each) {
  if (step.is_null()) return absl::OkStatus();
  if (String(step, "type") != "Sequence") {
    if (++*count > kMaxSteps) return Bad(absl::StrCat("more than ", kMaxSteps, " ", list));
    return each(step);
  }
  const json& steps = Member(step, list);
  if (!steps.is_array()) return Bad(absl::StrCat("a Sequence without ", list));
  for (const json& inner : steps) {
    TOROID_RETURN_IF_ERROR(ForEachStep(inner, list, count, each));
  }
  return absl::OkStatus();
}

// {"String": "..."} or {"Regex": "..."}
absl::StatusOr<Regex> Pattern(const json& step) {
  const json& pattern = Member(step, "pattern");
  if (Member(pattern, "String").is_string()) return Regex::Literal(String(pattern, "String"));
  if (Member(pattern, "Regex").is_string()) return Regex::Compile(String(pattern, "Regex"));
  return Bad(absl::StrCat(String(step, "type"), " without a pattern"));
}

absl::Status AddNormalizer(const json& step, Normalizer* out) {
  const std::string type = String(step, "type");
  if (type == "NFC") {
    out->AddForm(NormalForm::kNfc);
  } else if (type == "NFD") {
    out->AddForm(NormalForm::kNfd);
  } else if (type == "NFKC") {
    out->AddForm(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    out->AddForm(NormalForm::kNfkd);
  } else if (type == "Prepend") {
    out->AddPrepend(String(step, "prepend"));
  } else if (type == "Replace") {
    TOROID_ASSIGN_OR_RETURN(Regex pattern, Pattern(step));
    out->AddReplace(std::move(pattern), String(step, "content"));
  } else {
    return Refused(absl::StrCat("the normalizer \"", type, "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitBehavior> Behavior(const std::string& name) {
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  return Refused(absl::StrCat("the split behavior \"", name, "\""));
}

// The scheme of a Metaspace, pre-tokenizer or decoder; old files say add_prefix_space instead.
absl::StatusOr<PrependScheme> Scheme(const json& step) {
  const std::string name = String(step, "prepend_scheme");
  if (name == "never") return PrependScheme::kNever;
  if (name == "first") return PrependScheme::kFirst;
  if (name == "always") return PrependScheme::kAlways;
  if (!name.empty()) return Refused(absl::StrCat("the prepend_scheme \"", name, "\""));
  return Bool(step, "add_prefix_space", true) ? PrependScheme::kAlways : PrependScheme::kNever;
}

absl::StatusOr<char32_t> SingleCharacter(const json& step, const char* name) {
  const std::string text = String(step, name);
  size_t end = 0;
  const char32_t c = text.empty() ? 0 : NextCharacter(text, &end);
  if (text.empty() || end != text.size()) {
    return Bad(absl::StrCat(String(step, "type"), ": ", name, " is not one character"));
  }
  return c;
}

absl::Status AddPreTokenizer(const json& step, PreTokenizer* out) {
  const std::string type = String(step, "type");
  if (type == "Split") {
    TOROID_ASSIGN_OR_RETURN(Regex pattern, Pattern(step));
    TOROID_ASSIGN_OR_RETURN(const SplitBehavior behavior, Behavior(String(step, "behavior")));
    out->AddSplit(std::move(pattern), behavior, Bool(step, "invert"));
  } else if (type == "ByteLevel") {
    return out->AddByteLevel(Bool(step, "add_prefix_space", true), Bool(step, "use_regex", true));
  } else if (type == "Digits") {
    out->AddDigits(Bool(step, "individual_digits"));
  } else if (type == "Metaspace") {
    TOROID_RETURN_IF_ERROR(SingleCharacter(step, "replacement").status());
    TOROID_ASSIGN_OR_RETURN(const PrependScheme scheme, Scheme(step));
    out->AddMetaspace(String(step, "replacement"), scheme, Bool(step, "split", true));
  } else {
    return Refused(absl::StrCat("the pre-tokenizer \"", type, "\""));
  }
  return absl::OkStatus();
}

absl::Status AddDecoder(const json& step, TokenDecoder* out) {
  const std::string type = String(step, "type");
  if (type == "ByteLevel") return out->AddByteLevel();
  if (type == "ByteFallback") return out->AddByteFallback();
  if (type == "Fuse") return out->AddFuse();
  if (type == "Replace") {
    const json& literal = Member(Member(step, "pattern"), "String");
    const std::string content = String(step, "content");
    if (literal.is_string()) return out->AddReplaceLiteral(literal.get<std::string>(), content);
    TOROID_ASSIGN_OR_RETURN(Regex pattern, Pattern(step));
    return out->AddReplaceRegex(std::move(pattern), content);
  }
  if (type == "Strip") {
    TOROID_ASSIGN_OR_RETURN(const char32_t content, SingleCharacter(step, "content"));
    const int64_t start = Integer(step, "start", 0), stop = Integer(step, "stop", 0);
    if (start < 0 || stop < 0) return Bad("the decoder Strip has a negative count");
    return out->AddStrip(content, static_cast<size_t>(start), static_cast<size_t>(stop));
  }
  if (type == "Metaspace") {
    TOROID_ASSIGN_OR_RETURN(const char32_t replacement, SingleCharacter(step, "replacement"));
    TOROID_ASSIGN_OR_RETURN(const PrependScheme scheme, Scheme(step));
    return out->AddMetaspace(replacement, scheme != PrependScheme::kNever);
  }
  return Refused(absl::StrCat("the decoder \"", type, "\""));
}

// The ids of one special token of a TemplateProcessing.
absl::Status AppendTemplateToken(const json& step, const json& token, std::vector<int32_t>* ids) {
  const std::string name = String(token, "id");
  const json& list = Member(Member(Member(step, "special_tokens"), name.c_str()), "ids");
  if (!list.is_array()) {
    return Bad(absl::StrCat("TemplateProcessing: no ids for the token \"", name, "\""));
  }
  for (const json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      return Bad("TemplateProcessing: an id is not a number");
    }
    if (ids->size() >= kMaxTemplateTokens) return Bad("TemplateProcessing: too many tokens");
    ids->push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::Status AddTemplate(const json& step, Tokenizer::Parts* parts) {
  std::vector<int32_t> before, after;
  bool text_seen = false;
  const json& pieces = Member(step, "single");
  if (!pieces.is_array()) return Bad("TemplateProcessing without a list \"single\"");
  for (const json& piece : pieces) {
    if (Member(piece, "SpecialToken").is_object()) {
      TOROID_RETURN_IF_ERROR(
          AppendTemplateToken(step, Member(piece, "SpecialToken"), text_seen ? &after : &before));
    } else if (Member(piece, "Sequence").is_object() && !text_seen) {
      text_seen = true;
    } else {
      return Refused("a TemplateProcessing that holds the text twice");
    }
  }
  if (!text_seen) return Refused("a TemplateProcessing without the text");
  parts->prefix.insert(parts->prefix.begin(), before.begin(), before.end());
  parts->suffix.insert(parts->suffix.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::Status AddPostProcessor(const json& step, Tokenizer::Parts* parts) {
  const std::string type = String(step, "type");
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets only
  if (type == "TemplateProcessing") return AddTemplate(step, parts);
  return Refused(absl::StrCat("the post-processor \"", type, "\""));
}

absl::Status CheckModel(const json& model, const ScannedTokenizer& file) {
  if (!model.is_object()) return Bad("no model");
  const std::string type = String(model, "type", file.has_merges ? "BPE" : "");
  if (type != "BPE") return Refused(absl::StrCat("the model \"", type, "\""));
  if (!file.has_vocabulary || !file.has_merges) return Bad("the model has no vocab or no merges");
  const json& dropout = Member(model, "dropout");
  if (dropout.is_number() && dropout.get<double>() != 0) return Refused("dropout");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!String(model, name).empty()) return Refused(absl::StrCat("the model's ", name));
  }
  return absl::OkStatus();
}

absl::Status CheckTopLevel(const json& file) {
  if (!Member(file, "truncation").is_null()) {
    return Refused("truncation (set it to null)");
  }
  const json& padding = Member(file, "padding");
  if (!padding.is_null() && (Member(padding, "strategy") != "BatchLongest" ||
                             !Member(padding, "pad_to_multiple_of").is_null())) {
    return Refused("padding (set it to null)");
  }
  return absl::OkStatus();
}

// Ids may have holes, but not many more ids than there is text for.
absl::StatusOr<size_t> VocabularySize(const ScannedTokenizer& file, size_t bytes) {
  int64_t largest = -1;
  for (const auto& entry : file.vocabulary) {
    if (entry.id < 0) return Bad("an id in model.vocab is negative or too large");
    largest = std::max(largest, entry.id);
  }
  const json& added = Member(file.rest, "added_tokens");
  if (!added.is_array() && !added.is_null()) return Bad("added_tokens is not a list");
  for (const json& token : added) {
    const int64_t id = Integer(token, "id", -1);
    if (id < 0) return Bad("an added token has no id");
    largest = std::max(largest, id);
  }
  if (largest >= static_cast<int64_t>(bytes / 4 + 1024)) {
    return Bad(absl::StrCat("the id ", largest, " is too large for a file of ", bytes, " bytes"));
  }
  return static_cast<size_t>(largest + 1);
}

absl::Status FillModel(const ScannedTokenizer& file, Tokenizer::Parts* parts) {
  for (const auto& entry : file.vocabulary) {
    TOROID_RETURN_IF_ERROR(parts->vocabulary.AddModelToken(entry.id, file.Token(entry)));
  }
  const json& model = Member(file.rest, "model");
  BpeOptions options;
  options.ignore_merges = Bool(model, "ignore_merges");
  options.byte_fallback = Bool(model, "byte_fallback");
  options.fuse_unk = Bool(model, "fuse_unk");
  options.has_unk = Member(model, "unk_token").is_string();
  options.unk_token = String(model, "unk_token");
  parts->bpe.emplace(&parts->vocabulary, std::move(options));
  std::string merged;
  for (size_t rank = 0; rank < file.merges.size(); ++rank) {
    const auto& merge = file.merges[rank];
    merged.assign(file.Left(merge)).append(file.Right(merge));
    const int32_t left = parts->vocabulary.FindModelToken(file.Left(merge));
    const int32_t right = parts->vocabulary.FindModelToken(file.Right(merge));
    const int32_t id = parts->vocabulary.FindModelToken(merged);
    if (left < 0 || right < 0 || id < 0) {
      return Bad(absl::StrCat("the merge ", rank, " needs a token that is not in the vocabulary"));
    }
    parts->bpe->AddMerge(left, right, static_cast<int32_t>(rank), id);
  }
  parts->bpe->Freeze();
  return absl::OkStatus();
}

absl::Status FillSteps(const json& file, Tokenizer::Parts* parts) {
  size_t count = 0;
  TOROID_RETURN_IF_ERROR(
      ForEachStep(Member(file, "normalizer"), "normalizers", &count,
                  [&](const json& step) { return AddNormalizer(step, &parts->normalizer); }));
  TOROID_RETURN_IF_ERROR(
      ForEachStep(Member(file, "pre_tokenizer"), "pretokenizers", &(count = 0),
                  [&](const json& step) { return AddPreTokenizer(step, &parts->pre_tokenizer); }));
  TOROID_RETURN_IF_ERROR(
      ForEachStep(Member(file, "decoder"), "decoders", &(count = 0),
                  [&](const json& step) { return AddDecoder(step, &parts->decoder); }));
  return ForEachStep(Member(file, "post_processor"), "processors", &(count = 0),
                     [&](const json& step) { return AddPostProcessor(step, parts); });
}

absl::Status FillAddedTokens(const json& file, Tokenizer::Parts* parts) {
  for (const json& entry : Member(file, "added_tokens")) {
    AddedToken token;
    token.id = static_cast<int32_t>(Integer(entry, "id", -1));
    token.content = String(entry, "content");
    token.special = Bool(entry, "special");
    token.single_word = Bool(entry, "single_word");
    token.lstrip = Bool(entry, "lstrip");
    token.rstrip = Bool(entry, "rstrip");
    token.normalized = Bool(entry, "normalized", !token.special);
    if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes) {
      return Bad(absl::StrCat("the added token ", token.id, " has ", token.content.size(),
                              " bytes, not 1 to ", kMaxAddedTokenBytes));
    }
    TOROID_RETURN_IF_ERROR(parts->AddToken(token));
  }
  return absl::OkStatus();
}

// A token of tokenizer_config.json: "<s>" or {"content": "<s>", ...}.
std::string ConfigToken(const json& config, const char* name) {
  const json& value = Member(config, name);
  return value.is_string() ? value.get<std::string>() : String(value, "content");
}

absl::Status FillFromConfig(std::string_view text, Tokenizer::Parts* parts) {
  const json config = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError("tokenizer_config.json is not a JSON object");
  }
  const auto id = [&](const char* name) {
    const std::string token = ConfigToken(config, name);
    return token.empty() ? -1 : parts->vocabulary.Find(token);
  };
  parts->bos_id = id("bos_token");
  parts->eos_id = id("eos_token");
  const json& chat = Member(config, "chat_template");
  if (chat.is_string()) parts->chat_template = chat.get<std::string>();
  if (!chat.is_array()) return absl::OkStatus();
  for (const json& named : chat) {  // [{"name": "default", "template": "..."}, ...]
    if (String(named, "name") == "default") parts->chat_template = String(named, "template");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer::Parts>> PartsFromHuggingFace(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  TOROID_ASSIGN_OR_RETURN(const ScannedTokenizer file, ScanTokenizerJson(tokenizer_json));
  TOROID_RETURN_IF_ERROR(CheckTopLevel(file.rest));
  TOROID_RETURN_IF_ERROR(CheckModel(Member(file.rest, "model"), file));
  TOROID_ASSIGN_OR_RETURN(const size_t size, VocabularySize(file, tokenizer_json.size()));
  auto parts = std::make_unique<Tokenizer::Parts>(size);
  TOROID_RETURN_IF_ERROR(FillModel(file, parts.get()));
  TOROID_RETURN_IF_ERROR(FillSteps(file.rest, parts.get()));
  TOROID_RETURN_IF_ERROR(FillAddedTokens(file.rest, parts.get()));
  for (const auto* ids : {&parts->prefix, &parts->suffix}) {
    for (int32_t id : *ids) {
      if (!parts->vocabulary.Has(id)) {
        return Bad(absl::StrCat("the post-processor adds the id ", id, ", which is no token"));
      }
    }
  }
  if (!tokenizer_config_json.empty()) {
    TOROID_RETURN_IF_ERROR(FillFromConfig(tokenizer_config_json, parts.get()));
  }
  if (parts->bos_id < 0 && parts->prefix.size() == 1) parts->bos_id = parts->prefix[0];
  return parts;
}

}  // namespace toroid
