// Small token data sets of tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/train/token_dataset.h"
#include "tests/support/model_files.h"

namespace toroid {

using Documents = std::vector<std::vector<int32_t>>;

// Writes a shard and returns its path.
std::string WriteShard(const TemporaryDirectory& directory, const std::string& name,
                       const Documents& documents, int64_t vocab_size = 65536);

// The documents in shards of at most `per_shard` documents.
std::shared_ptr<const TokenDataset> MakeDataset(const TemporaryDirectory& directory,
                                                const Documents& documents, int64_t per_shard = 3,
                                                int64_t vocab_size = 65536);

// Documents of the given lengths; the tokens are 0, 1, 2, ... through all of them.
Documents CountingDocuments(const std::vector<int64_t>& lengths);

}  // namespace toroid
