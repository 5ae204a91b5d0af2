#include "tests/support/token_sets.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/train/token_shard.h"

namespace toroid {

std::string WriteShard(const TemporaryDirectory& directory, const std::string& name,
                       const Documents& documents, int64_t vocab_size) {
  const std::string path = absl::StrCat(directory.path(), "/", name);
  auto writer = TokenShardWriter::Create(path, vocab_size, 7);
  TOROID_CHECK_MSG(writer.ok(), writer.status().ToString());
  for (const auto& document : documents) TOROID_CHECK(writer->Add(document).ok());
  TOROID_CHECK(writer->Finish().ok());
  return path;
}

std::shared_ptr<const TokenDataset> MakeDataset(const TemporaryDirectory& directory,
                                                const Documents& documents, int64_t per_shard,
                                                int64_t vocab_size) {
  std::vector<std::string> paths;
  for (size_t i = 0; i < documents.size(); i += size_t(per_shard)) {
    const size_t end = std::min(documents.size(), i + size_t(per_shard));
    paths.push_back(WriteShard(
        directory, absl::StrCat(i, ".tokens"),
        Documents(documents.begin() + int64_t(i), documents.begin() + int64_t(end)), vocab_size));
  }
  auto set = TokenDataset::Open(paths);
  TOROID_CHECK_MSG(set.ok(), set.status().ToString());
  return std::make_shared<const TokenDataset>(*std::move(set));
}

Documents CountingDocuments(const std::vector<int64_t>& lengths) {
  Documents documents;
  int32_t next = 0;
  for (const int64_t length : lengths) {
    documents.emplace_back();
    for (int64_t i = 0; i < length; ++i) documents.back().push_back(next++);
  }
  return documents;
}

}  // namespace toroid
