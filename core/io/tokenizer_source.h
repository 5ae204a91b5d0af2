// What a model brings for its tokenizer, unparsed: core/text makes a tokenizer of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace toroid {

// The tokenizer of a GGUF file; the key of each field is tokenizer.ggml.NAME unless stated.
struct GgufVocabulary {
  std::string model;                      // "gpt2" or "llama"
  std::string pre;                        // name of the pre-tokenizer, for "gpt2"
  std::vector<std::string> tokens;        // tokens
  std::vector<float> scores;              // scores, for "llama"
  std::vector<int32_t> token_types;       // token_type; may be empty: all normal
  std::vector<std::string> merges;        // merges, "left right", for "gpt2"
  std::optional<int32_t> bos_id, eos_id;  // bos_token_id, eos_token_id
  std::optional<int32_t> unk_id;          // unknown_token_id
  std::optional<bool> add_bos, add_eos;   // add_bos_token, add_eos_token
  std::optional<bool> add_space_prefix;   // add_space_prefix, for "llama"
  std::string chat_template;              // tokenizer.chat_template; empty if none
};

struct TokenizerSource {
  enum class Kind {
    kBytes,        // random models: token = byte value, other ids have no text
    kHuggingFace,  // the texts below
    kGguf,         // `gguf`
    kNone          // a directory without tokenizer.json, a GGUF file without tokens: ids only
  };
  Kind kind = Kind::kNone;
  std::string tokenizer_json;         // the file's text
  std::string tokenizer_config_json;  // empty if there is no such file
  std::string chat_template;          // chat_template.jinja, empty if there is no such file
  GgufVocabulary gguf;
};

}  // namespace toroid
