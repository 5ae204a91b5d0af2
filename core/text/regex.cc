#include "core/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

// Property White_Space. PCRE2's own \s also holds U+180E, which left that property in Unicode 6.3.
constexpr std::string_view kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
// Alphabetic, marks, decimal digits, connectors. PCRE2 10.42's own \w is only L, N and underscore.
constexpr std::string_view kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-"
    "\\x{1f169}\\x{1f170}-\\x{1f189}";

constexpr size_t kMaxPatternBytes = 16384;

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

// Walks an Oniguruma pattern once and writes the PCRE2 pattern of the same meaning.
class PatternTranslator {
 public:
  explicit PatternTranslator(std::string_view in) : in_(in) {}

  absl::StatusOr<std::string> Translate() {
    while (at_ < in_.size()) {
      absl::Status status = in_class_ ? InsideClass() : OutsideClass();
      if (!status.ok()) return status;
    }
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) {
    return absl::UnimplementedError(absl::StrCat("the regular expression \"", Absl(in_), "\" uses ",
                                                 Absl(what), ", which is not implemented"));
  }

  void Copy(size_t count) {
    count = std::min(count, in_.size() - at_);
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  void Write(std::string_view before, std::string_view set, std::string_view after) {
    out_.append(before).append(set).append(after);
    at_ += 2;
  }

  // A backslash and what follows it, in and out of a class.
  absl::Status Escape() {
    if (at_ + 1 == in_.size()) return Refuse("a backslash at its end");
    const char c = in_[at_ + 1];
    const bool in = in_class_;
    if (c == 's' || c == 'w') {
      Write(in ? "" : "[", c == 's' ? kSpace : kWord, in ? "" : "]");
    } else if ((c == 'S' || c == 'W') && !in) {
      Write("[^", c == 'S' ? kSpace : kWord, "]");
    } else if (c == 'd' || c == 'D' || c == 'p' || c == 'P' || c == 'x' || c == 'r' || c == 'n' ||
               c == 't' || c == 'f' || c == 'a' || c == 'e' || (c == 'A' && !in) ||
               (c == 'z' && !in) || static_cast<unsigned char>(c) >= 0x80 || !IsAlphanumeric(c)) {
      Copy(1 + Utf8Length(c));
      const bool braced = (c == 'p' || c == 'P' || c == 'x') && at_ < in_.size() && in_[at_] == '{';
      if (braced) Copy(std::min(in_.find('}', at_), in_.size()) - at_ + 1);
    } else if (c == 'v') {
      Write("", "\\x{b}", "");
    } else {
      return Refuse(std::string("\\") + c);
    }
    return absl::OkStatus();
  }

  absl::Status InsideClass() {
    const char c = in_[at_];
    if (c == '\\') return Escape();
    if (c == '[') return Refuse("a class inside a class");
    if (in_.substr(at_, 2) == "&&") return Refuse("an intersection of classes");
    if (c == ']' && at_ != class_start_) in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status OutsideClass() {
    const char c = in_[at_];
    if (c == '\\') return Escape();
    if (c == '[') {
      Copy(1);
      if (at_ < in_.size() && in_[at_] == '^') Copy(1);
      class_start_ = at_;
      in_class_ = true;
      return absl::OkStatus();
    }
    if (in_.substr(at_, 2) == "(?") return Group();
    if (in_.substr(at_, 2) == "(*") return Refuse("a (*VERB)");
    if (in_.substr(at_, 2) == "}+") return Refuse("an interval followed by +");
    if (c == '^') {  // always the start of a line in Ruby's syntax
      out_ += "(?m:^)";
      ++at_;
    } else if (c == '$') {
      out_ += "(?m:$)";
      ++at_;
    } else {
      Copy(1);
    }
    return absl::OkStatus();
  }

  absl::Status Group() {
    const std::string_view rest = in_.substr(at_ + 2);
    for (std::string_view same : {":", "=", "!", ">", "<=", "<!", "i:", "i)", "-i:", "-i)"}) {
      if (rest.substr(0, same.size()) == same) {
        Copy(2 + same.size());
        return absl::OkStatus();
      }
    }
    return Refuse(absl::StrCat("the group (?", Absl(rest.substr(0, 2))));
  }

  static bool IsAlphanumeric(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }

  std::string_view in_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
  size_t class_start_ = 0;  // a ] here is a literal
};

void FindAllLiteral(std::string_view text, std::string_view literal,
                    std::vector<TextRange>* matches) {
  for (size_t at = text.find(literal); at != std::string_view::npos;
       at = text.find(literal, at + literal.size())) {
    matches->push_back({at, at + literal.size()});
  }
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string pattern;
  ~Code() { pcre2_code_free(code); }
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a regular expression of ", pattern.size(),
                                                   " bytes is longer than ", kMaxPatternBytes));
  }
  auto translated = PatternTranslator(pattern).Translate();
  if (!translated.ok()) return translated.status();
  auto code = std::make_shared<Code>();
  code->pattern = std::string(pattern);
  std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                             context.get());
  if (code->code == nullptr) {
    PCRE2_UCHAR message[160] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(
        absl::StrCat("the regular expression \"", Absl(pattern),
                     "\" does not compile: ", reinterpret_cast<const char*>(message)));
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter runs
  return Regex(std::move(code));
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  if (text.empty()) return absl::InvalidArgumentError("an empty pattern");
  Regex regex(nullptr);
  regex.literal_ = std::string(text);
  return regex;
}

absl::Status Regex::FindAll(std::string_view text, std::vector<TextRange>* matches) const {
  if (code_ == nullptr) {
    FindAllLiteral(text, literal_, matches);
    return absl::OkStatus();
  }
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  // A sane pattern needs a few steps per character: this stops exponential ones within a second.
  pcre2_set_match_limit(
      context.get(), static_cast<uint32_t>(std::min<size_t>(100000 + 16 * text.size(), 1u << 30)));
  pcre2_set_heap_limit(context.get(), 64 * 1024);  // KiB
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t from = 0, last_end = std::string_view::npos;
  while (from <= text.size()) {
    int rc = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, data.get(),
                         context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       data.get(), context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("the regular expression \"", code_->pattern,
                                                       "\" gave up on this text (PCRE2 error ", rc,
                                                       ")"));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    const size_t begin = range[0], end = range[1];
    if (begin > end) {
      return absl::InvalidArgumentError(
          absl::StrCat("the regular expression \"", code_->pattern, "\" matches backwards"));
    }
    if (begin == end && end == last_end) {
      from += from < text.size() ? Utf8Length(text[from]) : 1;
      continue;
    }
    matches->push_back({begin, end});
    from = last_end = end;
  }
  return absl::OkStatus();
}

}  // namespace toroid
