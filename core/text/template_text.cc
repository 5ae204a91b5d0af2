#include "core/text/template_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "core/text/unicode.h"

namespace toroid {
namespace template_text {

bool IsCased(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
      return true;
    default:
      return false;
  }
}
bool IsLetter(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
bool IsUpper(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_LU;
}
bool IsSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::min(Utf8Length(text[at]), text.size() - at);
    out.push_back(text.substr(at, length));
    at += length;
  }
  return out;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string_view Strip(std::string_view text, const std::string* characters, Side side) {
  const auto goes = [&](std::string_view one) {
    if (characters != nullptr) return characters->find(one) != std::string::npos;
    size_t at = 0;
    return IsSpace(NextCharacter(one, &at));
  };
  while ((side & kLeft) && !text.empty()) {
    const size_t length = Utf8Length(text[0]);
    if (!goes(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while ((side & kRight) && !text.empty()) {
    size_t start = 0;
    PreviousCharacter(text, text.size(), &start);
    if (!goes(text.substr(start))) break;
    text = text.substr(0, start);
  }
  return text;
}

namespace {
enum class Case { kUpper, kLower, kTitle };
void AppendCase(char32_t c, Case to, std::string* out) {
  const auto code = static_cast<utf8proc_int32_t>(c);
  if (c == 0xDF && to != Case::kLower) {
    *out += to == Case::kUpper ? "SS" : "Ss";
  } else if (to == Case::kUpper) {
    AppendUtf8(static_cast<char32_t>(utf8proc_toupper(code)), out);
  } else if (to == Case::kLower) {
    AppendUtf8(static_cast<char32_t>(utf8proc_tolower(code)), out);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_totitle(code)), out);
  }
}
template <typename Each>
void ForEach(std::string_view text, Each each) {
  for (size_t at = 0; at < text.size();) each(NextCharacter(text, &at));
}
}  // namespace

std::string Upper(std::string_view text) {
  std::string out;
  ForEach(text, [&](char32_t c) { AppendCase(c, Case::kUpper, &out); });
  return out;
}
std::string Lower(std::string_view text) {
  std::string out;
  ForEach(text, [&](char32_t c) { AppendCase(c, Case::kLower, &out); });
  return out;
}
std::string Capitalize(std::string_view text) {
  std::string out;
  bool first = true;
  ForEach(text, [&](char32_t c) {
    AppendCase(c, std::exchange(first, false) ? Case::kTitle : Case::kLower, &out);
  });
  return out;
}
std::string Title(std::string_view text, bool as_filter) {
  std::string out;
  bool start = true;
  ForEach(text, [&](char32_t c) {
    AppendCase(c, start ? (as_filter ? Case::kUpper : Case::kTitle) : Case::kLower, &out);
    start = as_filter ? c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || IsSpace(c)
                      : !IsCased(c);
  });
  return out;
}

}  // namespace template_text

}  // namespace toroid
