// Tokens to text while they are being generated. StreamDecoder gives out text once no later token
// can change it: never half a character, never U+FFFD for a character that will be completed.
// StopMatcher looks for stop strings in that text and holds back what may be the start of one.
// Both belong to one sequence and one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/text/token_decoder.h"
#include "core/text/tokenizer.h"

namespace toroid {

class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer* tokenizer, bool skip_special = true);

  // The text that became final with this token, often empty in the middle of a character.
  std::string Push(int32_t id);
  // What is left. The texts of all Push and of Finish together equal Tokenizer::Decode of the ids.
  // The decoder is then as new.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  TokenDecoder::Run run_;
};

// Finds the first stop string to be completed (of those completed at the same place the one that
// begins first), however the text is cut into pieces: Knuth-Morris-Pratt for each stop string.
class StopMatcher {
 public:
  // InvalidArgument for a stop string that is empty or not UTF-8. No stop strings: all text passes.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stops);

  // The text that can be shown now. Once stopped() the text ends before the stop string and all
  // further text is dropped.
  std::string Push(std::string_view text);
  // What was held back, if no stop string came.
  std::string Finish();

  bool stopped() const { return stopped_; }
  // The stop string that was found; empty if none.
  const std::string& stop() const { return stop_; }

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // border[i]: longest proper border of text[0, i]
    size_t matched = 0;          // how much of text the last characters match
  };
  explicit StopMatcher(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {}

  std::vector<Pattern> patterns_;
  std::string held_;
  std::string stop_;
  bool stopped_ = false;
};

}  // namespace toroid
