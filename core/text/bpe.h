// Byte pair encoding of one word (Sennrich et al. 2016, "Neural Machine Translation of Rare Words
// with Subword Units"): start from characters and, as long as some neighbouring pair has a merge,
// apply the merge of lowest rank, the leftmost of equals.
// A heap of candidate merges over a linked list of symbols: O(n log n) for n characters, so a word
// of 100,000 characters is no attack. SentencePiece's BPE is the same with rank = order by score.
// Immutable after Freeze and thread-safe; what an Encode call works with lies in its own Workspace.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "core/text/vocabulary.h"

namespace toroid {

struct BpeOptions {
  bool ignore_merges = false;  // a word that is a token is taken whole
  bool byte_fallback = false;  // an unknown character becomes its bytes' tokens <0x00> .. <0xFF>
  bool fuse_unk = false;       // neighbouring unknown characters become one unknown token
  bool has_unk = false;        // else unknown characters vanish
  std::string unk_token;
};

class Bpe {
 public:
  class Workspace {
   private:
    friend class Bpe;
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // -1 at the ends
    };
    struct Candidate {
      int32_t rank, position, id;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<int32_t> word;
    absl::flat_hash_map<std::string, std::vector<int32_t>> cache;  // short words of this text
  };

  // `vocabulary` must outlive this and stay where it is.
  Bpe(const Vocabulary* vocabulary, BpeOptions options);

  // left + right -> merged. A later merge of the same pair replaces an earlier one.
  void AddMerge(int32_t left, int32_t right, int32_t rank, int32_t merged);
  // After the last merge.
  void Freeze();

  // Appends the ids of `word` (valid UTF-8). FailedPrecondition if the unknown token is needed and
  // is not in the vocabulary.
  absl::Status Encode(std::string_view word, Workspace* work, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank, id;
  };

  absl::Status EncodeChunk(std::string_view chunk, Workspace* work,
                           std::vector<int32_t>* ids) const;
  absl::Status ToSymbols(std::string_view chunk, Workspace* work) const;
  void MergeAll(Workspace* work) const;
  void PushCandidate(int32_t left, Workspace* work) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  const Vocabulary* vocabulary_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  std::vector<int32_t> byte_ids_;  // empty, or 256 ids, -1 where missing
  absl::flat_hash_map<uint64_t, Merge> merges_;
  // No merge joins "x" and U+2581 (x another character), so words may be cut in between: a text
  // that is one single word to the model (Llama 2) is encoded, and cached, word by word.
  bool cut_before_underline_ = false;
};

}  // namespace toroid
