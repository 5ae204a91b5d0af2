// The endless list of training tokens: the data set's documents epoch after epoch, each epoch in an
// order of its own that (seed, epoch) decides. One number, the list index, says where a run stands.
//
// No epoch's order is ever written down: KeyedPermutation gives the i-th document, and the sum of
// lengths before every 1,024th is kept. A jump to a place that was never visited sums up the
// lengths on the way there once, in this epoch; after that a place is found by bisection and at
// most 1,024 lengths.
// Thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/train/permutation.h"
#include "core/train/token_dataset.h"

namespace toroid {

class TokenList {
 public:
  struct Options {
    uint64_t seed = 0;
    bool shuffle = true;       // false: every epoch in the data set's order
    int32_t end_of_text = -1;  // stands behind each document; -1: nothing does
    int64_t epochs = 0;        // 0: no end
  };
  // REQUIRES an end_of_text of the data set's vocabulary.
  TokenList(std::shared_ptr<const TokenDataset> set, Options options);

  static constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();
  // Tokens of an epoch, and of the whole list; kNoEnd if it goes on for ever.
  int64_t epoch_tokens() const { return epoch_tokens_; }
  int64_t size() const { return size_; }

  // Equal for equal lists: of the data set's content and all options but the end.
  uint64_t fingerprint() const;

  // A part of one document, its end_of_text included.
  struct Piece {
    int64_t document = 0;
    int64_t first = 0, count = 0;
    bool ends = false;  // the document ends with it
  };
  // The pieces that list indices [begin, begin + count) are, fewer at the list's end. REQUIRES
  // begin, count >= 0.
  std::vector<Piece> Find(int64_t begin, int64_t count) const;
  // The piece's tokens, appended.
  absl::Status Read(const Piece& piece, std::vector<int32_t>& ids) const;

 private:
  struct Epoch {
    int64_t number = -1;
    std::shared_ptr<const KeyedPermutation> order;  // null: the data set's
    std::vector<int64_t> sums;                      // tokens before document 1024 i in this order
  };
  // The i-th document of an epoch, and its length with end_of_text.
  int64_t Document(const Epoch& epoch, int64_t i) const;
  int64_t Length(int64_t document) const;
  // The epoch's entry, begun if need be. Both REQUIRE mutex_.
  Epoch& Visit(int64_t number) const;
  // Which document of the epoch holds its token `index`, and how far in.
  std::pair<int64_t, int64_t> Place(Epoch& epoch, int64_t index) const;

  std::shared_ptr<const TokenDataset> set_;
  Options options_;
  int64_t epoch_tokens_, size_;
  mutable std::mutex mutex_;
  mutable Epoch epochs_[2];  // by number mod 2: a pack may lie in two
};

}  // namespace toroid
