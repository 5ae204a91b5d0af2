#include "core/text/vocabulary.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(Absl(text.substr(0, 80))), "\"");
}

}  // namespace

Vocabulary::Vocabulary(size_t size) : texts_(size), flags_(size), direct_(kDirect, -1) {}

absl::Status Vocabulary::SetText(int64_t id, std::string_view text) {
  if (id < 0 || id >= size()) {
    return absl::InvalidArgumentError(absl::StrCat("the token ", Quoted(text), " has the id ", id,
                                                   ", outside the vocabulary of ", size()));
  }
  if (!(flags_[id] & kPresent)) {
    texts_[id] = std::string(text);
    flags_[id] |= kPresent;
  } else if (texts_[id] != text) {
    return absl::InvalidArgumentError(absl::StrCat("the id ", id, " stands for two tokens, ",
                                                   Quoted(texts_[id]), " and ", Quoted(text)));
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::AddModelToken(int64_t id, std::string_view text) {
  TOROID_RETURN_IF_ERROR(SetText(id, text));
  const auto [entry, inserted] = model_.try_emplace(absl::string_view(texts_[id]), id);
  if (!inserted && entry->second != id) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token ", Quoted(text), " has two ids, ", entry->second, " and ", id));
  }
  size_t end = 0;
  if (!text.empty()) {
    const char32_t c = NextCharacter(text, &end);
    if (end == text.size() && c < kDirect) direct_[c] = static_cast<int32_t>(id);
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::AddAddedToken(int64_t id, std::string_view text, bool special) {
  TOROID_RETURN_IF_ERROR(SetText(id, text));
  const int32_t in_model = FindModelToken(text);
  if (in_model >= 0 && in_model != id) {
    return absl::InvalidArgumentError(absl::StrCat("the added token ", Quoted(text), " has the id ",
                                                   id, " but is ", in_model, " in the model"));
  }
  const auto [entry, inserted] = added_.try_emplace(absl::string_view(texts_[id]), id);
  if (!inserted && entry->second != id) {
    return absl::InvalidArgumentError(absl::StrCat("the added token ", Quoted(text),
                                                   " has two ids, ", entry->second, " and ", id));
  }
  flags_[id] |= kAdded | (special ? kSpecial : 0);
  return absl::OkStatus();
}

int32_t Vocabulary::FindModelToken(std::string_view text) const {
  const auto found = model_.find(Absl(text));
  return found == model_.end() ? -1 : found->second;
}

int32_t Vocabulary::Find(std::string_view text) const {
  const auto found = added_.find(Absl(text));
  return found == added_.end() ? FindModelToken(text) : found->second;
}

}  // namespace toroid
