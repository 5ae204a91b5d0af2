// The split patterns of tokenizers: PCRE2 with JIT, UTF and UCP behind the one question asked of
// them, "where are the matches". Patterns are written for Oniguruma (Ruby syntax), which the
// models' own tokenizers use; where PCRE2 reads a construct differently it is rewritten (\s, \w, ^,
// $ ...) or refused by name, never silently misread. Immutable and thread-safe after Compile.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace toroid {

struct TextRange {
  size_t begin, end;  // bytes
};

class Regex {
 public:
  // InvalidArgument for a pattern that is not valid, Unimplemented for one whose meaning differs.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // A pattern that matches `text` literally (not empty).
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // Appends the non-overlapping matches in `valid_text`, left to right. An empty match directly
  // behind another match is skipped. ResourceExhausted if the pattern backtracks without end.
  absl::Status FindAll(std::string_view valid_text, std::vector<TextRange>* matches) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::string literal_;
  std::shared_ptr<const Code> code_;  // null for a literal
};

}  // namespace toroid
