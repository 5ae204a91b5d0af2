#include "core/text/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/tokenizer_parts.h"
#include "core/text/unicode.h"

namespace toroid {

absl::Status Tokenizer::Parts::AddToken(const AddedToken& token) {
  TOROID_RETURN_IF_ERROR(vocabulary.AddAddedToken(token.id, token.content, token.special));
  if (!token.normalized) {
    in_raw_text.Add(token, token.content);
    return absl::OkStatus();
  }
  TOROID_ASSIGN_OR_RETURN(const std::string normalized, normalizer.Apply(token.content));
  if (normalized.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the added token \"", token.content, "\" is normalised to nothing"));
  }
  in_normalized_text.Add(token, normalized);
  if (normalized != token.content) normalized_spellings[token.id] = normalized;
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromBytes() {
  auto parts = std::make_unique<Parts>(256);
  for (int b = 0; b < 256; ++b) {
    std::string text;
    AppendUtf8(ByteToCharacter(static_cast<unsigned char>(b)), &text);
    TOROID_RETURN_IF_ERROR(parts->vocabulary.AddModelToken(b, text));
  }
  TOROID_RETURN_IF_ERROR(parts->pre_tokenizer.AddByteLevel(false, /*use_regex=*/false));
  TOROID_RETURN_IF_ERROR(parts->decoder.AddByteLevel());
  parts->bpe.emplace(&parts->vocabulary, BpeOptions{});
  parts->bpe->Freeze();
  return std::make_unique<const Tokenizer>(std::move(parts));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromSource(
    const TokenizerSource& source) {
  switch (source.kind) {
    case TokenizerSource::Kind::kBytes:
      return FromBytes();
    case TokenizerSource::Kind::kGguf:
      return FromGguf(source.gguf);
    case TokenizerSource::Kind::kHuggingFace: {
      TOROID_ASSIGN_OR_RETURN(
          auto parts, PartsFromHuggingFace(source.tokenizer_json, source.tokenizer_config_json));
      if (!source.chat_template.empty()) parts->chat_template = source.chat_template;
      return std::make_unique<const Tokenizer>(std::move(parts));
    }
    case TokenizerSource::Kind::kNone:
      break;
  }
  return absl::NotFoundError(
      "the model has no tokenizer.json: give token ids (--prompt-ids) instead of text");
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::FromHuggingFace(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  TOROID_ASSIGN_OR_RETURN(auto parts, PartsFromHuggingFace(tokenizer_json, tokenizer_config_json));
  return std::make_unique<const Tokenizer>(std::move(parts));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       EncodeOptions options) const {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid != text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the text is not valid UTF-8: byte ", valid,
                                                   " of ", text.size(), "; convert it to UTF-8"));
  }
  std::vector<int32_t> ids;
  if (options.add_special) ids = parts_->prefix;
  Bpe::Workspace work;
  const PreTokenizer::Sink encode_word = [&](std::string_view word) {
    return parts_->bpe->Encode(word, &work, &ids);
  };
  for (const auto& raw : parts_->in_raw_text.Cut(text, options.parse_special)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    std::string normalized;
    std::string_view piece = raw.text;
    if (!parts_->normalizer.empty()) {
      TOROID_ASSIGN_OR_RETURN(normalized, parts_->normalizer.Apply(piece));
      piece = normalized;
    }
    const bool at_start = raw.text.data() == text.data();
    for (const auto& cut : parts_->in_normalized_text.Cut(piece, options.parse_special)) {
      if (cut.id >= 0) {
        ids.push_back(cut.id);
        continue;
      }
      TOROID_RETURN_IF_ERROR(parts_->pre_tokenizer.Apply(
          cut.text, at_start && cut.text.data() == piece.data(), encode_word));
    }
  }
  if (options.add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  TokenDecoder::Run run(&parts_->decoder);
  std::string text;
  for (int32_t id : ids) {
    if (!parts_->vocabulary.Has(id)) continue;
    if (skip_special && IsSpecial(id)) continue;
    run.Push(parts_->Spelling(id), &text);
  }
  run.Finish(&text);
  return text;
}

std::string_view Tokenizer::Piece(int32_t id) const {
  return parts_->vocabulary.Has(id) ? parts_->Spelling(id) : std::string_view();
}

int32_t Tokenizer::TokenId(std::string_view piece) const { return parts_->vocabulary.Find(piece); }
bool Tokenizer::IsSpecial(int32_t id) const { return parts_->vocabulary.IsSpecial(id); }
int32_t Tokenizer::vocab_size() const { return parts_->vocabulary.size(); }
int32_t Tokenizer::bos_id() const { return parts_->bos_id; }
int32_t Tokenizer::eos_id() const { return parts_->eos_id; }
bool Tokenizer::adds_bos() const {
  return parts_->bos_id >= 0 && !parts_->prefix.empty() && parts_->prefix[0] == parts_->bos_id;
}
const std::string& Tokenizer::chat_template() const { return parts_->chat_template; }

}  // namespace toroid
