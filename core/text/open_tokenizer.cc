#include "core/text/open_tokenizer.h"

#include "core/status_macros.h"

namespace toroid {
namespace {

void AppendUtf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out.push_back(char(code));
  } else {
    out.push_back(char(0xC0 | (code >> 6)));
    out.push_back(char(0x80 | (code & 0x3F)));
  }
}

// 256 tokens, token = byte, in GPT-2's spelling of bytes: printable Latin-1 stands for itself, the
// others, in order, for the letters from U+0100 on.
GgufVocabulary ByteVocabulary() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    std::string token;
    AppendUtf8(printable ? byte : next++, token);
    vocabulary.tokens.push_back(token);
  }
  return vocabulary;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(const TokenizerSource& source) {
  switch (source.kind) {
    case TokenizerSource::Kind::kNone:
      return std::shared_ptr<const Tokenizer>();
    case TokenizerSource::Kind::kBytes: {
      TOROID_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::FromGguf(ByteVocabulary()));
      return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
    }
    case TokenizerSource::Kind::kGguf: {
      TOROID_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::FromGguf(source.gguf));
      return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
    }
    case TokenizerSource::Kind::kHuggingFace: {
      TOROID_ASSIGN_OR_RETURN(
          auto tokenizer,
          Tokenizer::FromHuggingFace(source.tokenizer_json, source.tokenizer_config_json));
      return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
    }
  }
  return absl::InternalError("unknown kind of tokenizer");
}

}  // namespace toroid
