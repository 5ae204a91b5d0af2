#include "core/text/added_tokens.h"

#include <algorithm>

#include "core/text/unicode.h"

namespace toroid {
namespace {

uint64_t EdgeKey(int32_t node, char byte) {
  return (static_cast<uint64_t>(node) << 8) | static_cast<unsigned char>(byte);
}

bool EndsWithWord(std::string_view text) {
  size_t start = 0;
  return !text.empty() && IsWordCharacter(PreviousCharacter(text, text.size(), &start));
}

bool StartsWithWord(std::string_view text) {
  size_t offset = 0;
  return !text.empty() && IsWordCharacter(NextCharacter(text, &offset));
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher() : nodes_(1) {}

void AddedTokenMatcher::Add(const AddedToken& token, std::string_view text) {
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    int32_t& next =
        i == 0 ? root_[static_cast<unsigned char>(text[0])] : edges_[EdgeKey(node, text[i])];
    if (next == 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
    }
    node = next;
  }
  if (nodes_[node].token >= 0) return;  // the first of equal texts wins
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

int32_t AddedTokenMatcher::Longest(std::string_view text, size_t at, size_t* end) const {
  int32_t node = root_[static_cast<unsigned char>(text[at])];
  int32_t best = -1;
  for (size_t i = at + 1; node != 0; ++i) {
    if (nodes_[node].token >= 0) {
      best = nodes_[node].token;
      *end = i;
    }
    if (i == text.size()) break;
    const auto edge = edges_.find(EdgeKey(node, text[i]));
    node = edge == edges_.end() ? 0 : edge->second;
  }
  return best;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::Cut(std::string_view text,
                                                             bool parse_special) const {
  std::vector<Piece> pieces;
  if (tokens_.empty()) {
    pieces.push_back({text, -1});
    return pieces;
  }
  size_t done = 0;                          // text before it is in pieces
  size_t spaces_begin = 0, spaces_end = 0;  // the last run of white space that was measured
  for (size_t at = 0; at < text.size();) {
    size_t match_end = 0;
    const int32_t index = Longest(text, at, &match_end);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, end = match_end;
    at = match_end;
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) {
      while (begin > done) {
        size_t start = 0;
        if (!IsWhiteSpace(PreviousCharacter(text, begin, &start))) break;
        begin = start;
      }
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      if (end < spaces_begin || end > spaces_end) {
        spaces_begin = spaces_end = end;
        while (spaces_end < text.size()) {
          size_t next = spaces_end;
          if (!IsWhiteSpace(NextCharacter(text, &next))) break;
          spaces_end = next;
        }
      }
      end = spaces_end;
    }
    if (done < begin) pieces.push_back({text.substr(done, begin - done), -1});
    pieces.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({text.substr(done), -1});
  return pieces;
}

}  // namespace toroid
