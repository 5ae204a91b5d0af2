// The documents of a list of token shards, numbered through: what batches are made of.
// Immutable, hence thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/train/token_shard.h"

namespace toroid {

class TokenDataset {
 public:
  // The order of `paths` is the order of the documents. InvalidArgument naming the shard that is
  // none, or whose vocabulary differs from the first one's, or if there is no token at all.
  static absl::StatusOr<TokenDataset> Open(const std::vector<std::string>& paths);
  // The same of shards that were opened. REQUIRES at least one.
  static absl::StatusOr<TokenDataset> Of(std::vector<TokenShard> shards);

  int64_t documents() const { return first_document_.back(); }
  int64_t tokens() const { return tokens_; }
  int64_t vocab_size() const { return shards_[0].vocab_size(); }
  // Equal for equal documents in equal shards, whatever their files are called.
  uint64_t fingerprint() const;

  // As TokenShard's.
  int64_t Length(int64_t document) const;
  absl::Status Read(int64_t document, int64_t first, int64_t count, int32_t* ids) const;

 private:
  // Shard of a document, whose number becomes that within the shard.
  const TokenShard& Find(int64_t& document) const;

  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_document_ = {0};  // of each shard, and the end
  int64_t tokens_ = 0;
};

}  // namespace toroid
