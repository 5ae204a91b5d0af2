// A model's tokenizer as the files that transformers and Tokenizer::FromHuggingFace read.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/tokenizer_source.h"

namespace toroid {

struct TokenizerFile {
  std::string name;  // "tokenizer.json"
  std::string text;
};

// Of a Hugging Face model its own texts; of a GGUF file or of bytes the same steps written as
// tokenizer.json and tokenizer_config.json; empty if the model has no tokenizer. SentencePiece
// tokens of equal score are merged in the order of their ids there. Errors as FromGguf has them.
absl::StatusOr<std::vector<TokenizerFile>> TokenizerFiles(const TokenizerSource& source);

}  // namespace toroid
