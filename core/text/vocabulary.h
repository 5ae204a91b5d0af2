// The id <-> text table of a tokenizer. Two kinds of entries share the ids: those of the model (BPE
// may produce them) and added tokens (matched in the text as a whole, before BPE).
// Invariant: one text per id; ids may have holes. Immutable once the tokenizer is built:
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace toroid {

class Vocabulary {
 public:
  // Ids will lie in [0, size).
  explicit Vocabulary(size_t size);
  // Moving keeps the texts in place, copying would not.
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // InvalidArgument if the id is out of range or already has another text, or the text another id.
  absl::Status AddModelToken(int64_t id, std::string_view text);
  absl::Status AddAddedToken(int64_t id, std::string_view text, bool special);

  // The id of a token of the model, -1 if there is none.
  int32_t FindModelToken(std::string_view text) const;
  // The same for a single character: the fast way in.
  int32_t FindCharacter(char32_t c, std::string_view text) const {
    return c < kDirect ? direct_[c] : FindModelToken(text);
  }
  // Added tokens first, then the model's.
  int32_t Find(std::string_view text) const;

  // One more than the largest possible id.
  int32_t size() const { return static_cast<int32_t>(texts_.size()); }
  bool Has(int64_t id) const {
    return id >= 0 && id < static_cast<int64_t>(texts_.size()) && (flags_[id] & kPresent);
  }
  bool IsSpecial(int64_t id) const { return Has(id) && (flags_[id] & kSpecial); }
  bool IsAdded(int64_t id) const { return Has(id) && (flags_[id] & kAdded); }
  // Empty for a hole.
  const std::string& Text(int32_t id) const { return texts_[id]; }

 private:
  enum : uint8_t { kPresent = 1, kAdded = 2, kSpecial = 4 };
  static constexpr char32_t kDirect = 0x200;  // covers the alphabet of byte-level BPE
  using Index = absl::flat_hash_map<absl::string_view, int32_t>;  // views into texts_

  absl::Status SetText(int64_t id, std::string_view text);

  std::vector<std::string> texts_;
  std::vector<uint8_t> flags_;
  Index model_, added_;
  std::vector<int32_t> direct_;
};

}  // namespace toroid
