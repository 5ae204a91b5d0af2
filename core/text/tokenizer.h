// Text to token ids and back, exactly as the model's own tokenizer does it.
//
// Covers BPE models: byte-level (GPT-2, Llama 3, Qwen, SmolLM2) and SentencePiece-style with byte
// fallback (Llama 2, Mistral), from Hugging Face's tokenizer.json and from GGUF. The steps, in
// order:
//   added tokens cut the text -> normalizer -> added tokens again, in normalised text
//   -> pre-tokenizer cuts words -> BPE -> post-processor adds BOS and EOS.
// Whatever in a tokenizer.json changes tokens and is not implemented is refused by name at load.
//
// Immutable and thread-safe: any number of threads may encode and decode with one Tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/tokenizer_source.h"

namespace toroid {

struct EncodeOptions {
  bool add_special = true;    // add what the post-processor adds: BOS, EOS
  bool parse_special = true;  // recognise special tokens written in the text
};

class Tokenizer {
 public:
  // `tokenizer_json` and `tokenizer_config_json` (may be empty) are the texts of the files. The
  // second gives the names of BOS and EOS and the chat template; all else comes from the first.
  // InvalidArgument: not such a file. Unimplemented: names what toroid cannot do.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromHuggingFace(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json = {});
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromGguf(
      const GgufVocabulary& vocabulary);

  // One token per byte value, for models without a vocabulary of their own (random weights).
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromBytes();
  // What a model brought. NotFound if it brought nothing: then only token ids are possible.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> FromSource(const TokenizerSource& source);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // InvalidArgument naming the byte if `text` is not UTF-8.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              EncodeOptions options = {}) const;

  // Ids that are no token (a model's table may be padded) are skipped. Always valid UTF-8: bytes
  // that are not become U+FFFD.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = true) const;

  // The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); empty if there is none.
  std::string_view Piece(int32_t id) const;
  // -1 if no token is spelt so.
  int32_t TokenId(std::string_view piece) const;
  bool IsSpecial(int32_t id) const;

  // One more than the largest id.
  int32_t vocab_size() const;
  // -1 if not known.
  int32_t bos_id() const;
  int32_t eos_id() const;
  // Whether Encode with add_special puts BOS in front.
  bool adds_bos() const;
  // The model's own chat template (Jinja); empty if it has none.
  const std::string& chat_template() const;

  // Opaque parts, for the loaders and StreamDecoder.
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<const Parts> parts_;
};

}  // namespace toroid
