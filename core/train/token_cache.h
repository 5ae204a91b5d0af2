// Text tokenised once: shards of tokens in a directory that is named by what went into them.
//
//   CACHE/KEY/shard-00003-of-00040.tokens
// KEY is a hash of the sources' names, sizes and times, the tokenizer and the options: whatever
// changes them makes another directory. Shard i holds portion i of the sources, so the data set is
// the same whoever made it: worker w of n makes shards w, w + n, ... Each appears by a rename; a
// killed worker goes on with the shards that are missing.
// Immutable, hence thread-safe; workers may be threads, ranks or hosts that share CACHE.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/io/tokenizer_source.h"
#include "core/text/tokenizer.h"
#include "core/train/data_source.h"
#include "core/train/token_dataset.h"

namespace toroid {

struct TokenCacheOptions {
  std::string directory;  // CACHE; is made if need be
  DocumentRule documents;
  // Text that spells a special token is text: a document cannot forge the end of another.
  EncodeOptions encode = {.add_special = true, .parse_special = false};
  int64_t portion_bytes = int64_t{64} << 20;  // of source text per shard
  std::atomic<int64_t>* ticks = nullptr;      // raised with every document: a life sign
};

// What a worker has done of its own share.
struct TokenCacheProgress {
  int64_t shards = 0, shards_done = 0;
  int64_t bytes = 0, bytes_done = 0;  // of source text
  int64_t documents = 0, tokens = 0;  // of this call
};

class TokenCache {
 public:
  // `sources` as FindSources gave them, no tokens. `tokenizer` is TokenizerFingerprint's.
  static absl::StatusOr<TokenCache> Create(std::vector<SourceFile> sources, uint64_t tokenizer,
                                           TokenCacheOptions options);

  int64_t shards() const { return int64_t(portions_.size()); }
  std::string ShardPath(int64_t shard) const;

  // Makes what is missing of the worker's shards. `progress` (may be null) is called after every
  // few MiB and every shard; Cancelled once it returns false. Other errors name the source's
  // document, or the shard that cannot be written. REQUIRES 0 <= worker < workers.
  absl::Status Make(const Tokenizer& tokenizer, int64_t worker, int64_t workers,
                    const std::function<bool(const TokenCacheProgress&)>& progress) const;

  // The whole. FailedPrecondition naming the first shard that is not there yet.
  absl::StatusOr<TokenDataset> Open() const;

 private:
  TokenCache() = default;
  bool Exists(int64_t shard) const;
  absl::Status MakeShard(const Tokenizer& tokenizer, int64_t shard,
                         const std::function<bool(const TokenCacheProgress&)>& progress,
                         TokenCacheProgress& done) const;

  TokenCacheOptions options_;
  std::vector<SourceFile> sources_;
  std::vector<std::vector<SourcePart>> portions_;
  uint64_t key_ = 0;
  std::string directory_;  // CACHE/KEY
};

// Of all that decides what a text's tokens are.
uint64_t TokenizerFingerprint(const TokenizerSource& source);

}  // namespace toroid
