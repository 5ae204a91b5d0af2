// What a Tokenizer is made of: filled by the loaders (tokenizer_json.cc, tokenizer_gguf.cc), read
// by tokenizer.cc and StreamDecoder. Not for use outside core/text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "core/text/added_tokens.h"
#include "core/text/bpe.h"
#include "core/text/text_steps.h"
#include "core/text/token_decoder.h"
#include "core/text/tokenizer.h"
#include "core/text/vocabulary.h"

namespace toroid {

struct Tokenizer::Parts {
  explicit Parts(size_t vocabulary_size) : vocabulary(vocabulary_size) {}

  // Registers `token` in the vocabulary and in the matcher. After `normalizer` is filled.
  absl::Status AddToken(const AddedToken& token);
  // What the token `id` (there is one) is worth to the decoder: an added token that is matched in
  // normalised text stands for that text, as in `tokenizers` 0.23. (There such a token, if special,
  // also loses its being special when it is decoded; here it stays special.)
  std::string_view Spelling(int32_t id) const {
    if (vocabulary.IsAdded(id)) {
      const auto found = normalized_spellings.find(id);
      if (found != normalized_spellings.end()) return found->second;
    }
    return vocabulary.Text(id);
  }

  Vocabulary vocabulary;
  std::optional<Bpe> bpe;  // points to `vocabulary`: Parts never moves
  absl::flat_hash_map<int32_t, std::string> normalized_spellings;  // where not the token's own text
  AddedTokenMatcher in_raw_text, in_normalized_text;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  std::vector<int32_t> prefix, suffix;  // what the post-processor adds
  int32_t bos_id = -1, eos_id = -1;
  std::string chat_template;
};

// tokenizer_json.cc
absl::StatusOr<std::unique_ptr<Tokenizer::Parts>> PartsFromHuggingFace(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json);

}  // namespace toroid
