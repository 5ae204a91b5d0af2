#include "core/train/token_dataset.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/fingerprint.h"
#include "core/status_macros.h"

namespace toroid {

absl::StatusOr<TokenDataset> TokenDataset::Open(const std::vector<std::string>& paths) {
  if (paths.empty()) return absl::InvalidArgumentError("the data set has no file");
  std::vector<TokenShard> shards;
  for (const std::string& path : paths) {
    TOROID_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path));
    shards.push_back(std::move(shard));
  }
  return Of(std::move(shards));
}

absl::StatusOr<TokenDataset> TokenDataset::Of(std::vector<TokenShard> shards) {
  TOROID_CHECK(!shards.empty());
  TokenDataset set;
  set.shards_ = std::move(shards);
  for (const TokenShard& shard : set.shards_) {
    if (shard.vocab_size() != set.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          shard.name(), ": a vocabulary of ", shard.vocab_size(), ", but ", set.shards_[0].name(),
          " has one of ", set.vocab_size(), "; a data set is of one tokenizer"));
    }
    set.first_document_.push_back(set.first_document_.back() + shard.documents());
    set.tokens_ += shard.tokens();
  }
  if (set.tokens_ == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        set.shards_[0].name(), set.shards_.size() > 1 ? " and the shards after it" : "",
        ": the data set is empty: not one document has a token"));
  }
  return set;
}

uint64_t TokenDataset::fingerprint() const {
  FingerprintHash hash;
  for (const TokenShard& shard : shards_) {
    hash.Number(shard.documents());
    hash.Number(shard.tokens());
    hash.Number(shard.vocab_size());
    hash.Number(int64_t(shard.checksum()));
  }
  return hash.value();
}

const TokenShard& TokenDataset::Find(int64_t& document) const {
  TOROID_CHECK(document >= 0 && document < documents());
  const auto after = std::upper_bound(first_document_.begin(), first_document_.end(), document);
  const size_t shard = size_t(after - first_document_.begin()) - 1;
  document -= first_document_[shard];
  return shards_[shard];
}

int64_t TokenDataset::Length(int64_t document) const {
  const TokenShard& shard = Find(document);
  return shard.Length(document);
}

absl::Status TokenDataset::Read(int64_t document, int64_t first, int64_t count,
                                int32_t* ids) const {
  const TokenShard& shard = Find(document);
  return shard.Read(document, first, count, ids);
}

}  // namespace toroid
