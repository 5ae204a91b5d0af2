// UTF-8 and the few Unicode properties that tokenizers need. Everything here is a pure function:
// thread-safe, no state. "Valid" always means well-formed UTF-8 (no overlong forms, surrogates or
// values above U+10FFFF), which Encode checks once, so the rest may step over characters blindly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace toroid {

// Length in bytes of the longest well-formed prefix of `text`.
size_t ValidUtf8Prefix(std::string_view text);

inline bool IsValidUtf8(std::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

// Length of the character whose first byte is `lead`, in valid UTF-8.
inline size_t Utf8Length(char lead) {
  const auto c = static_cast<unsigned char>(lead);
  return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

// The character at `*offset` of valid UTF-8, moving `*offset` behind it.
char32_t NextCharacter(std::string_view text, size_t* offset);

// The character that ends just before `end` (> 0) of valid UTF-8, and where it starts.
char32_t PreviousCharacter(std::string_view text, size_t end, size_t* start);

void AppendUtf8(char32_t c, std::string* out);

// What a malformed or unfinished sequence at the front of `bytes` (not empty) is worth, following
// the "maximal subpart" rule (Unicode 15, section 3.9, table 3-8):
// length of a well-formed character if there is one (kind kGood); else the number of bytes that one
// U+FFFD stands for (kBad); or kUnfinished if more bytes could still complete the character.
struct Utf8Step {
  enum Kind { kGood, kBad, kUnfinished } kind;
  size_t length;
};
Utf8Step StepUtf8(std::string_view bytes);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

bool IsWhiteSpace(char32_t c);     // Unicode property White_Space
bool IsNumeric(char32_t c);        // general category Nd, Nl or No
bool IsWordCharacter(char32_t c);  // \w of Unicode TR18: Alphabetic, M, Nd, Pc, Join_Control

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalisation in O(n log n), whatever the order of combining marks.
std::string Normalize(std::string_view valid_text, NormalForm form);

}  // namespace toroid
