#include "core/text/template_lexer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80);
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsBlank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), in_(source_) {}

  absl::StatusOr<std::vector<TemplateToken>> Lex() {
    while (at_ < in_.size() && error_.empty()) Root();
    if (!error_.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("template line ", line_, ": ", error_));
    }
    Add(TemplateToken::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
  }
  void Add(TemplateToken::Kind kind, std::string text) {
    TemplateToken token;
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
  }
  bool Looking(std::string_view at) const { return in_.substr(at_, at.size()) == at; }
  void Skip(size_t count) {
    line_ += static_cast<int>(
        std::count(in_.begin() + at_, in_.begin() + std::min(at_ + count, in_.size()), '\n'));
    at_ = std::min(at_ + count, in_.size());
    line_start_ = at_ > 0 && in_[at_ - 1] == '\n';
  }
  void SkipBlanks() {
    size_t count = 0;
    while (at_ + count < in_.size() && IsBlank(in_[at_ + count])) ++count;
    if (count > 0) Skip(count);
  }

  // Text up to the next tag, then the tag.
  void Root() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = in_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= in_.size()) {
        tag = in_.size();
        break;
      }
      if (in_[tag + 1] == '{' || in_[tag + 1] == '%' || in_[tag + 1] == '#') break;
    }
    std::string_view text = in_.substr(at_, tag - at_);
    const bool begins_line = line_start_;
    const char sign = tag + 2 < in_.size() ? in_[tag + 2] : ' ';
    if (tag < in_.size()) text = StripBeforeTag(text, in_[tag + 1], sign, begins_line);
    if (!text.empty()) Add(TemplateToken::kText, std::string(text));
    Skip(tag - at_);
    if (tag >= in_.size()) return;
    const char kind = in_[at_ + 1];
    Skip(2);
    if (sign == '-' || (sign == '+' && kind != '{')) Skip(1);
    if (kind == '#') return Comment();
    if (kind == '%' && Raw()) return;
    Add(kind == '{' ? TemplateToken::kPrint : TemplateToken::kBlock, "");
    Tag(kind == '{');
  }

  static std::string_view StripBeforeTag(std::string_view text, char kind, char sign,
                                         bool begins_line) {
    if (sign == '-') {
      while (!text.empty()) {
        size_t start = 0;
        const char32_t c = PreviousCharacter(text, text.size(), &start);
        if (!IsWhiteSpace(c) && !(c >= 0x1C && c <= 0x1F)) break;
        text = text.substr(0, start);
      }
      return text;
    }
    if (sign == '+' || kind == '{') return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !begins_line) return text;
    for (size_t i = line; i < text.size();) {
      if (!IsWhiteSpace(NextCharacter(text, &i))) return text;
    }
    return text.substr(0, line);
  }

  // Behind the end of a block or comment: "-" eats white space, otherwise one newline goes.
  void AfterBlock(char sign) {
    if (sign == '-') {
      SkipSpaces();
    } else if (sign != '+' && at_ < in_.size() && in_[at_] == '\n') {
      Skip(1);
    }
  }
  void SkipSpaces() {
    size_t end = at_;
    while (end < in_.size()) {
      size_t next = end;
      const char32_t c = NextCharacter(in_, &next);
      if (!IsWhiteSpace(c) && !(c >= 0x1C && c <= 0x1F)) break;
      end = next;
    }
    if (end > at_) Skip(end - at_);
  }

  void Comment() {
    const size_t end = in_.find("#}", at_);
    if (end == std::string_view::npos) return Fail("a comment {# is not closed");
    const char sign = end > at_ ? in_[end - 1] : ' ';
    Skip(end + 2 - at_);
    AfterBlock(sign);
  }

  // {% raw %} ... {% endraw %}; false if this is another block.
  bool Raw() {
    size_t i = at_;
    while (i < in_.size() && IsBlank(in_[i])) ++i;
    if (in_.substr(i, 3) != "raw") return false;
    i += 3;
    while (i < in_.size() && IsBlank(in_[i])) ++i;
    char sign = ' ';
    if (i < in_.size() && in_[i] == '-') sign = in_[i++];
    if (in_.substr(i, 2) != "%}") return false;
    Skip(i + 2 - at_);
    if (sign == '-') SkipSpaces();  // no newline is trimmed here
    if (at_ >= in_.size()) return true;
    for (size_t tag = in_.find("{%", at_); tag != std::string_view::npos;
         tag = in_.find("{%", tag + 2)) {
      size_t j = tag + 2;
      char open = ' ', close = ' ';
      if (j < in_.size() && (in_[j] == '-' || in_[j] == '+')) open = in_[j++];
      while (j < in_.size() && IsBlank(in_[j])) ++j;
      if (in_.substr(j, 6) != "endraw") continue;
      j += 6;
      while (j < in_.size() && IsBlank(in_[j])) ++j;
      if (j < in_.size() && (in_[j] == '-' || in_[j] == '+')) close = in_[j++];
      if (in_.substr(j, 2) != "%}") continue;
      const auto text = StripBeforeTag(in_.substr(at_, tag - at_), '%', open, line_start_);
      if (!text.empty()) Add(TemplateToken::kText, std::string(text));
      Skip(j + 2 - at_);
      AfterBlock(close);
      return true;
    }
    Fail("{% raw %} is not closed");
    return true;
  }

  // The tokens of one tag, to its end.
  void Tag(bool print) {
    std::string open;  // brackets that are open: inside them }} and %} are no end
    const std::string_view end = print ? "}}" : "%}";
    while (error_.empty()) {
      SkipBlanks();
      if (at_ >= in_.size()) return Fail(print ? "{{ is not closed" : "{% is not closed");
      if (open.empty()) {
        char sign = ' ';
        if (in_[at_] == '-' || (in_[at_] == '+' && !print)) {
          if (in_.substr(at_ + 1, 2) == end) sign = in_[at_];
        }
        if (sign != ' ' || Looking(end)) {
          Skip(sign != ' ' ? 3 : 2);
          Add(print ? TemplateToken::kPrintEnd : TemplateToken::kBlockEnd, "");
          if (!print) {
            AfterBlock(sign);
          } else if (sign == '-') {
            SkipSpaces();
          }
          return;
        }
      }
      Token(&open);
    }
  }

  void Token(std::string* open) {
    const char c = in_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < in_.size() && (IsNameStart(in_[end]) || IsDigit(in_[end]))) ++end;
      Add(TemplateToken::kName, std::string(in_.substr(at_, end - at_)));
      return Skip(end - at_);
    }
    if (IsDigit(c)) return Number();
    if (c == '"' || c == '\'') return String(c);
    for (std::string_view op : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!Looking(op)) continue;
      Add(TemplateToken::kOperator, std::string(op));
      return Skip(2);
    }
    if (std::string_view("+-*/%~<>=.,:|()[]{}").find(c) == std::string_view::npos) {
      return Fail(absl::StrCat("unexpected character '", std::string(1, c), "'"));
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) {
        return Fail(absl::StrCat("unexpected '", std::string(1, c), "'"));
      }
      open->pop_back();
    }
    Add(TemplateToken::kOperator, std::string(1, c));
    Skip(1);
  }

  void Number() {
    size_t end = at_;
    std::string digits;
    const auto take = [&] {
      while (end < in_.size() && (IsDigit(in_[end]) || in_[end] == '_')) {
        if (in_[end] != '_') digits += in_[end];
        ++end;
      }
    };
    take();
    bool is_float = false;
    const bool after_dot = at_ > 0 && in_[at_ - 1] == '.';
    if (!after_dot && end + 1 < in_.size() && in_[end] == '.' && IsDigit(in_[end + 1])) {
      is_float = true;
      digits += in_[end++];
      take();
    }
    if (!after_dot && end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < in_.size() && (in_[exponent] == '+' || in_[exponent] == '-')) ++exponent;
      if (exponent < in_.size() && IsDigit(in_[exponent])) {
        is_float = true;
        digits.append(in_.substr(end, exponent - end));
        end = exponent;
        take();
      }
    }
    if (end < in_.size() && IsNameStart(in_[end])) return Fail("a number runs into a name");
    Add(is_float ? TemplateToken::kFloat : TemplateToken::kInt, std::move(digits));
    Skip(end - at_);
  }

  void String(char quote) {
    std::string text;
    size_t i = at_ + 1;
    while (i < in_.size() && in_[i] != quote) {
      if (in_[i] != '\\') {
        text.push_back(in_[i++]);
      } else if (!Escape(&i, &text)) {
        return;
      }
    }
    if (i >= in_.size()) return Fail("a string is not closed");
    Add(TemplateToken::kString, std::move(text));
    Skip(i + 1 - at_);
  }

  // One backslash escape of a Python string.
  bool Escape(size_t* i, std::string* text) {
    const char c = *i + 1 < in_.size() ? in_[*i + 1] : 0;
    *i += 2;
    constexpr std::string_view kFrom = "ntr\\'\"abfv", kTo = "\n\t\r\\'\"\a\b\f\v";
    if (const size_t known = kFrom.find(c); c != 0 && known != std::string_view::npos) {
      text->push_back(kTo[known]);
      return true;
    }
    if (c == '\n') return true;
    const int hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hex == 0 && !(c >= '0' && c <= '7')) {
      if (c == 'N') {
        Fail("the escape \\N is not implemented");
        return false;
      }
      text->push_back('\\');
      *i -= 1;  // the character itself comes next
      return true;
    }
    const int base = hex > 0 ? 16 : 8;
    int count = hex > 0 ? hex : 3;
    if (hex == 0) --*i;
    uint32_t value = 0;
    for (; count > 0 && *i < in_.size(); --count, ++*i) {
      const size_t digit = std::string_view("0123456789abcdef").find(in_[*i] | 0x20);
      if (digit >= static_cast<size_t>(base)) break;
      value = value * base + static_cast<uint32_t>(digit);
    }
    if ((hex > 0 && count > 0) || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      Fail("a malformed escape in a string");
      return false;
    }
    AppendUtf8(value, text);
    return true;
  }

  std::string source_;
  std::string_view in_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // the last thing passed over ended with a newline
  std::string error_;
  std::vector<TemplateToken> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source) {
  if (!IsValidUtf8(source)) return absl::InvalidArgumentError("the template is not valid UTF-8");
  std::string normalized;  // newlines are \n, and one at the end is dropped
  normalized.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      normalized.push_back('\n');
    } else {
      normalized.push_back(source[i]);
    }
  }
  if (!normalized.empty() && normalized.back() == '\n') normalized.pop_back();
  return Lexer(std::move(normalized)).Lex();
}

}  // namespace toroid
