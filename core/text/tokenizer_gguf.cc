// The tokenizer of a GGUF file -> Tokenizer: the same steps as in the model's tokenizer.json, found
// by the name of its pre-tokenizer ("gpt2") or fixed ("llama").
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/gguf_family.h"
#include "core/text/tokenizer_parts.h"

namespace toroid {
namespace {

// Values of tokenizer.ggml.token_type.
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr size_t kMaxTokenBytes = 1024;

absl::Status Bad(std::string what) {
  return absl::InvalidArgumentError(absl::StrCat("GGUF tokenizer: ", what));
}

int TypeOf(const GgufVocabulary& file, size_t id) {
  return file.token_types.empty() ? kNormal : file.token_types[id];
}

absl::Status Check(const GgufVocabulary& file) {
  const size_t size = file.tokens.size();
  if (size == 0) return Bad("no tokens");
  if (size > INT32_MAX) return Bad("too many tokens");
  if (!file.token_types.empty() && file.token_types.size() != size) {
    return Bad(absl::StrCat(file.token_types.size(), " token types for ", size, " tokens"));
  }
  for (const auto& id : {file.bos_id, file.eos_id, file.unk_id}) {
    if (id.has_value() && (*id < 0 || static_cast<size_t>(*id) >= size)) {
      return Bad(
          absl::StrCat("the special token id ", *id, " is outside the vocabulary of ", size));
    }
  }
  for (size_t id = 0; id < size; ++id) {
    if (file.tokens[id].size() > kMaxTokenBytes) {
      return Bad(absl::StrCat("the token ", id, " is longer than ", kMaxTokenBytes, " bytes"));
    }
    if (!IsValidUtf8(file.tokens[id])) return Bad(absl::StrCat("the token ", id, " is not UTF-8"));
  }
  return absl::OkStatus();
}

// All tokens are the model's; the control and user-defined ones are matched in text beforehand.
absl::Status FillTokens(const GgufVocabulary& file, Tokenizer::Parts* parts) {
  for (size_t id = 0; id < file.tokens.size(); ++id) {
    const std::string& text = file.tokens[id];
    if (parts->vocabulary.FindModelToken(text) >= 0) {
      return Bad(absl::StrCat("the tokens ", parts->vocabulary.FindModelToken(text), " and ", id,
                              " are equal"));
    }
    TOROID_RETURN_IF_ERROR(parts->vocabulary.AddModelToken(static_cast<int64_t>(id), text));
    const int type = TypeOf(file, id);
    const bool special = type == kControl || type == kUnknown;
    if ((!special && type != kUserDefined) || text.empty()) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = text;
    token.special = special;
    TOROID_RETURN_IF_ERROR(parts->AddToken(token));
  }
  return absl::OkStatus();
}

absl::Status FillByteLevel(const GgufVocabulary& file, const GgufFamily& family,
                           Tokenizer::Parts* parts) {
  if (family.nfc) parts->normalizer.AddForm(NormalForm::kNfc);
  if (family.digits) parts->pre_tokenizer.AddDigits(/*individual=*/true);
  if (!family.pattern.empty()) {
    TOROID_ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(family.pattern));
    parts->pre_tokenizer.AddSplit(std::move(pattern), SplitBehavior::kIsolated, false);
  }
  TOROID_RETURN_IF_ERROR(parts->pre_tokenizer.AddByteLevel(false, family.pattern.empty()));
  TOROID_RETURN_IF_ERROR(parts->decoder.AddByteLevel());
  TOROID_RETURN_IF_ERROR(FillTokens(file, parts));
  BpeOptions options;
  options.ignore_merges = family.ignore_merges;
  parts->bpe.emplace(&parts->vocabulary, std::move(options));
  for (size_t rank = 0; rank < file.merges.size(); ++rank) {
    const std::string& merge = file.merges[rank];
    const size_t space = merge.find(' ');
    if (space == std::string::npos) return Bad(absl::StrCat("the merge ", rank, " has no space"));
    const std::string_view left = std::string_view(merge).substr(0, space);
    const std::string_view right = std::string_view(merge).substr(space + 1);
    const int32_t left_id = parts->vocabulary.FindModelToken(left);
    const int32_t right_id = parts->vocabulary.FindModelToken(right);
    const int32_t id = parts->vocabulary.FindModelToken(std::string(left).append(right));
    if (left_id < 0 || right_id < 0 || id < 0) {
      return Bad(absl::StrCat("the merge ", rank, " needs a token that is not in the vocabulary"));
    }
    parts->bpe->AddMerge(left_id, right_id, static_cast<int32_t>(rank), id);
  }
  return absl::OkStatus();
}

// SentencePiece merges neighbours whose join is a token, the best score first. So: every way to cut
// a token into two tokens is a merge, ranked by the token's score; equal scores share a rank.
absl::Status AddMergesByScore(const GgufVocabulary& file, Tokenizer::Parts* parts) {
  std::vector<int32_t> order;
  for (size_t id = 0; id < file.tokens.size(); ++id) {
    const int type = TypeOf(file, id);
    if (std::isnan(file.scores[id])) return Bad(absl::StrCat("the score ", id, " is not a number"));
    if (type == kNormal || type == kUserDefined || type == kUnused) {
      order.push_back(static_cast<int32_t>(id));
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return file.scores[a] > file.scores[b]; });
  int32_t rank = -1;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || file.scores[order[i]] != file.scores[order[i - 1]]) ++rank;
    const std::string_view text = file.tokens[order[i]];
    for (size_t cut = 0; cut < text.size();) {
      cut += Utf8Length(text[cut]);
      if (cut >= text.size()) break;
      const int32_t left = parts->vocabulary.FindModelToken(text.substr(0, cut));
      const int32_t right = left < 0 ? -1 : parts->vocabulary.FindModelToken(text.substr(cut));
      if (right >= 0) parts->bpe->AddMerge(left, right, rank, order[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status FillSentencePiece(const GgufVocabulary& file, Tokenizer::Parts* parts) {
  if (file.scores.size() != file.tokens.size()) {
    return Bad(absl::StrCat(file.scores.size(), " scores for ", file.tokens.size(), " tokens"));
  }
  const std::string underline = "\xE2\x96\x81";
  const bool prefix = file.add_space_prefix.value_or(true);
  if (prefix) parts->normalizer.AddPrepend(underline);
  TOROID_ASSIGN_OR_RETURN(Regex space, Regex::Literal(" "));
  parts->normalizer.AddReplace(std::move(space), underline);
  TOROID_RETURN_IF_ERROR(parts->decoder.AddReplaceLiteral(underline, " "));
  TOROID_RETURN_IF_ERROR(parts->decoder.AddByteFallback());
  TOROID_RETURN_IF_ERROR(parts->decoder.AddFuse());
  if (prefix) TOROID_RETURN_IF_ERROR(parts->decoder.AddStrip(' ', 1, 0));
  TOROID_RETURN_IF_ERROR(FillTokens(file, parts));
  BpeOptions options;
  options.byte_fallback = true;
  options.fuse_unk = true;
  for (size_t id = 0; id < file.tokens.size() && !options.has_unk; ++id) {
    const bool unknown = file.unk_id.has_value() ? static_cast<size_t>(*file.unk_id) == id
                                                 : TypeOf(file, id) == kUnknown;
    if (!unknown) continue;
    options.has_unk = true;
    options.unk_token = file.tokens[id];
  }
  parts->bpe.emplace(&parts->vocabulary, std::move(options));
  return AddMergesByScore(file, parts);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromGguf(const GgufVocabulary& file) {
  TOROID_RETURN_IF_ERROR(Check(file));
  auto parts = std::make_unique<Parts>(file.tokens.size());
  bool add_bos = true;
  if (file.model == "gpt2") {
    const GgufFamily* const family = FindGgufFamily(file.pre);
    if (family == nullptr) {
      return absl::UnimplementedError(absl::StrCat("GGUF tokenizer: the pre-tokenizer \"", file.pre,
                                                   "\" (tokenizer.ggml.pre) is not implemented"));
    }
    add_bos = family->add_bos;
    TOROID_RETURN_IF_ERROR(FillByteLevel(file, *family, parts.get()));
  } else if (file.model == "llama") {
    TOROID_RETURN_IF_ERROR(FillSentencePiece(file, parts.get()));
  } else {
    return absl::UnimplementedError(absl::StrCat("GGUF tokenizer: the model \"", file.model,
                                                 "\" (tokenizer.ggml.model) is not implemented"));
  }
  parts->bpe->Freeze();
  parts->bos_id = file.bos_id.value_or(-1);
  parts->eos_id = file.eos_id.value_or(-1);
  if (file.add_bos.value_or(add_bos) && parts->bos_id >= 0) parts->prefix = {parts->bos_id};
  if (file.add_eos.value_or(false) && parts->eos_id >= 0) parts->suffix = {parts->eos_id};
  parts->chat_template = file.chat_template;
  return std::make_unique<const Tokenizer>(std::move(parts));
}

}  // namespace toroid
