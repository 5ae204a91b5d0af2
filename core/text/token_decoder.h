// From tokens back to text: the decoder chain of tokenizer.json, run token by token. Text comes out
// as soon as no later token can change it, so decoding a whole and decoding a stream are one code
// path, and equal by construction.
// TokenDecoder is immutable once filled and thread-safe; a Run belongs to one thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "core/text/regex.h"

namespace toroid {

class TokenDecoder {
 public:
  // Each refuses (Unimplemented) an order of steps that cannot be run as a stream.
  absl::Status AddReplaceLiteral(std::string pattern, std::string content);
  absl::Status AddReplaceRegex(Regex pattern, std::string content);
  // Tokens <0x00> .. <0xFF> are bytes; a run of them that is not UTF-8 is one U+FFFD per byte.
  absl::Status AddByteFallback();
  // Joins the tokens into one.
  absl::Status AddFuse();
  // Removes up to `start` leading and `stop` trailing characters `content` of a token.
  absl::Status AddStrip(char32_t content, size_t start, size_t stop);
  // `replacement` becomes a space, in the first token nothing if a prefix was added.
  absl::Status AddMetaspace(char32_t replacement, bool drop_in_first);
  // Characters spell bytes; malformed UTF-8 becomes U+FFFD. Joins the tokens into one.
  absl::Status AddByteLevel();

  // Without any step tokens are joined by spaces, as `tokenizers` does.
  bool empty() const { return steps_.empty(); }

  class Run;

 private:
  struct Step {
    enum Kind {
      kReplaceLiteral,
      kReplaceRegex,
      kByteFallback,
      kFuse,
      kStrip,
      kMetaspace,
      kByteLevel
    };
    explicit Step(Kind k) : kind(k) {}
    Kind kind;
    bool fused = false;  // the tokens before this step are already one
    std::string pattern, content;
    std::optional<Regex> regex;
    char32_t character = 0;
    size_t start = 0, stop = 0;
    bool drop_in_first = false;
  };
  absl::Status Add(Step step, std::string_view name, bool streams_when_fused);

  std::vector<Step> steps_;
};

class TokenDecoder::Run {
 public:
  // `decoder` must outlive this.
  explicit Run(const TokenDecoder* decoder);

  // Appends to `out` the text that is final now.
  void Push(std::string_view token, std::string* out);
  // Appends the rest. The Run is then as new.
  void Finish(std::string* out);

 private:
  struct State {
    std::string pending;   // seen, not yet passed on
    size_t count = 0;      // tokens seen, or characters stripped at the start
    bool started = false;  // no more to strip at the start
  };
  void Feed(size_t step, std::string_view token, std::string* out);
  void Flush(size_t step, std::string* out);
  void FeedReplace(size_t step, std::string_view token, std::string* out);
  void FeedByteFallback(size_t step, std::string_view token, std::string* out);
  void FlushBytes(size_t step, std::string* out);
  void FeedStrip(size_t step, std::string_view token, std::string* out);
  void FeedFusedStrip(size_t step, std::string_view token, std::string* out);
  void FeedMetaspace(size_t step, std::string_view token, std::string* out);
  void FeedByteLevel(size_t step, std::string_view token, std::string* out);
  void EmitUtf8(size_t step, bool last, std::string* out);

  const TokenDecoder* decoder_;
  std::vector<State> states_;
  bool first_ = true;
};

}  // namespace toroid
