// Reads a tokenizer.json without building a tree of its two big tables: `model.vocab` and
// `model.merges` become flat lists into one buffer, all else becomes a JSON value. Bounded by the
// input: depth, number of values, memory; never throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace toroid {

struct ScannedTokenizer {
  struct VocabularyEntry {
    uint32_t begin, length;
    int64_t id;
  };
  struct MergeEntry {
    uint32_t begin, left_length, right_length;  // right follows left
  };

  std::string_view Token(const VocabularyEntry& e) const {
    return std::string_view(texts).substr(e.begin, e.length);
  }
  std::string_view Left(const MergeEntry& e) const {
    return std::string_view(texts).substr(e.begin, e.left_length);
  }
  std::string_view Right(const MergeEntry& e) const {
    return std::string_view(texts).substr(e.begin + e.left_length, e.right_length);
  }

  nlohmann::json rest;
  std::string texts;
  std::vector<VocabularyEntry> vocabulary;
  std::vector<MergeEntry> merges;
  bool has_vocabulary = false, has_merges = false;
};

absl::StatusOr<ScannedTokenizer> ScanTokenizerJson(std::string_view text);

}  // namespace toroid
