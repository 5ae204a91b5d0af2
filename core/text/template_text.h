// Texts as Python's str methods see them; `text` is valid UTF-8. Plain functions, thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace toroid {
namespace template_text {
enum Side { kLeft = 1, kRight = 2, kBoth = 3 };
// Strips `characters`, or white space if null.
std::string_view Strip(std::string_view text, const std::string* characters, Side side);
size_t CountCharacters(std::string_view text);
std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);
// Words start after what is not a letter (str.title), or after blanks and brackets (the filter).
std::string Title(std::string_view text, bool as_filter);
bool IsSpace(char32_t c);
bool IsCased(char32_t c);
bool IsLetter(char32_t c);
bool IsUpper(char32_t c);
std::vector<std::string_view> Characters(std::string_view text);
}  // namespace template_text

}  // namespace toroid
