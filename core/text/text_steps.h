// What happens to text before BPE, as tokenizer.json lists it: a Normalizer rewrites it, a
// PreTokenizer cuts it into words (and, for byte-level models, spells bytes as characters).
// Immutable once filled and thread-safe. Text in and out is valid UTF-8.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/text/regex.h"
#include "core/text/unicode.h"

namespace toroid {

class Normalizer {
 public:
  void AddForm(NormalForm form);
  void AddPrepend(std::string prefix);  // to text that is not empty
  void AddReplace(Regex pattern, std::string content);

  bool empty() const { return steps_.empty(); }
  absl::StatusOr<std::string> Apply(std::string_view text) const;

 private:
  struct Step {
    std::optional<NormalForm> form;
    std::optional<Regex> pattern;
    std::string content;
  };
  std::vector<Step> steps_;
};

// What becomes of the matches of a split pattern.
enum class SplitBehavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

// Which texts Metaspace puts its U+2581 before: none, only the one at the very start, all.
enum class PrependScheme { kNever, kFirst, kAlways };

class PreTokenizer {
 public:
  using Sink = std::function<absl::Status(std::string_view word)>;

  void AddSplit(Regex pattern, SplitBehavior behavior, bool invert);
  void AddDigits(bool individual);
  // use_regex: GPT-2's own split first.
  absl::Status AddByteLevel(bool add_prefix_space, bool use_regex);
  void AddMetaspace(std::string replacement, PrependScheme scheme, bool split);

  bool empty() const { return steps_.empty(); }
  // Hands the words of `text` to `sink` in order. `at_start`: text begins where the input began.
  absl::Status Apply(std::string_view text, bool at_start, const Sink& sink) const;

 private:
  struct Step {
    enum Kind { kSplit, kDigits, kByteLevel, kMetaspace };
    explicit Step(Kind k) : kind(k) {}
    Kind kind;
    std::optional<Regex> pattern;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    bool prefix_space = false;
    std::string replacement;
    PrependScheme scheme = PrependScheme::kNever;
  };
  absl::Status ApplyFrom(size_t step, std::string_view text, bool at_start, const Sink& sink) const;
  absl::Status CutByMatches(size_t step, const std::vector<TextRange>& matches,
                            std::string_view text, bool at_start, const Sink& sink) const;
  absl::Status ApplyByteLevel(size_t step, std::string_view text, bool at_start,
                              const Sink& sink) const;
  absl::Status ApplyMetaspace(size_t step, std::string_view text, bool at_start,
                              const Sink& sink) const;

  std::vector<Step> steps_;
};

// Byte-level BPE (GPT-2) spells each byte as one printable character.
char32_t ByteToCharacter(unsigned char byte);
// The byte that a character spells, -1 if none.
int CharacterToByte(char32_t c);

}  // namespace toroid
