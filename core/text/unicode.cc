#include "core/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "core/check.h"

namespace toroid {

Utf8Step StepUtf8(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return {Utf8Step::kGood, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::kBad, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte has a narrower range after four leads: no overlong forms (E0, F0), surrogates
  // (ED) or values above U+10FFFF (F4).
  unsigned low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Step::kUnfinished, i};
    if (at(i) < low || at(i) > high) return {Utf8Step::kBad, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::kGood, length};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = StepUtf8(text.substr(i));
    if (step.kind != Utf8Step::kGood) break;
    i += step.length;
  }
  return i;
}

char32_t NextCharacter(std::string_view text, size_t* offset) {
  const size_t length = std::min(Utf8Length(text[*offset]), text.size() - *offset);
  char32_t c = static_cast<unsigned char>(text[*offset]);
  if (length > 1) {
    c &= 0xFFu >> (length + 1);
    for (size_t i = 1; i < length; ++i) c = (c << 6) | (text[*offset + i] & 0x3F);
  }
  *offset += length;
  return c;
}

char32_t PreviousCharacter(std::string_view text, size_t end, size_t* start) {
  size_t at = end - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  *start = at;
  return NextCharacter(text, &at);
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  out->push_back(static_cast<char>((0xF00 >> length) | (c >> (6 * (length - 1)))));
  for (int i = length - 2; i >= 0; --i) {
    out->push_back(static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3F)));
  }
}

bool IsWhiteSpace(char32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0D);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

bool IsWordCharacter(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // Join_Control, and the circled and squared letters of Other_Alphabetic
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string Normalize(std::string_view text, NormalForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; })) {
    return std::string(text);
  }
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
      (compatible ? UTF8PROC_COMPAT : 0));
  // utf8proc's own loop sorts combining marks by insertion, quadratic in a run of them: decompose
  // character by character and sort the runs ourselves.
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  const auto sort_marks = [&](size_t first) {
    std::stable_sort(code_points.begin() + first, code_points.end(),
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) {
                       return combining_class(a) < combining_class(b);
                     });
  };
  size_t marks = 0;  // where the run of non-starters at the end begins
  for (size_t at = 0; at < text.size();) {
    const auto c = static_cast<utf8proc_int32_t>(NextCharacter(text, &at));
    utf8proc_int32_t parts[32];  // the longest decomposition, U+FDFA, has 18
    int boundary = 0;
    const auto count = utf8proc_decompose_char(
        c, parts, 32, static_cast<utf8proc_option_t>(options | UTF8PROC_DECOMPOSE), &boundary);
    TOROID_CHECK(count >= 0 && count <= 32);
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      if (combining_class(parts[i]) == 0) {
        sort_marks(marks);
        marks = code_points.size() + 1;
      }
      code_points.push_back(parts[i]);
    }
  }
  sort_marks(std::min(marks, code_points.size()));
  const auto length = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), options);
  TOROID_CHECK(length >= 0);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[i]), &out);
  }
  return out;
}

}  // namespace toroid
