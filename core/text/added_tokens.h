// Finds added tokens in text: whole strings such as <|im_end|> that become one id without BPE.
// Semantics of Hugging Face's `tokenizers`: leftmost-longest matches; `single_word` wants no word
// character next to the match; `lstrip` and `rstrip` swallow the white space before and after.
// Immutable after the last Add and thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace toroid {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;  // matched in normalised text, else in the text as given
  bool special = false;
};

class AddedTokenMatcher {
 public:
  struct Piece {
    std::string_view text;
    int32_t id;  // -1: ordinary text
  };

  AddedTokenMatcher();

  // `text` (not empty) is what is looked for: the content, normalised if the token says so.
  void Add(const AddedToken& token, std::string_view text);

  // Cuts `text` into ordinary text and tokens. Without `parse_special` special tokens are not
  // recognised: their text is ordinary.
  std::vector<Piece> Cut(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    int32_t token = -1;  // index into tokens_
  };
  // The longest token at `text[at..]`: its index, or -1, and its end.
  int32_t Longest(std::string_view text, size_t at, size_t* end) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;                       // a trie over bytes, root first
  std::array<int32_t, 256> root_{};               // 0: no edge
  absl::flat_hash_map<uint64_t, int32_t> edges_;  // (node, byte) -> node
};

}  // namespace toroid
