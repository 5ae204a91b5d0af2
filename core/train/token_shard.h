// A file of tokenised documents, and the data set that a list of such files is.
//
// Layout, little-endian:
//   header  64 bytes: "TOROIDTS", u32 version = 1, u32 token_bytes (2 or 4), u64 vocab_size,
//           u64 documents, u64 tokens, u64 source (TokenCache's key, 0: unknown), 12 bytes of zero,
//           u32 CRC-32C of the 60 bytes before
//   tokens  one document after the other, zeros up to a multiple of 8
//   tables  u64 begin[documents + 1] in tokens, u32 CRC-32C of each 64 KiB of the tokens,
//           u32 CRC-32C of the tables before
// Documents are not empty; ids lie below vocab_size.
//
// The bytes are untrusted. Open checks header and tables; tokens are checked block by block when
// they are first read, so that opening a large set is quick and a damaged block still stops the
// run, named.
// Thread-safe: const methods may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"

namespace toroid {

// Not thread-safe. Memory: the documents' table, and a buffer of tokens.
class TokenShardWriter {
 public:
  // Two bytes per token where the vocabulary allows. REQUIRES 0 < vocab_size < 2^31.
  static absl::StatusOr<TokenShardWriter> Create(const std::string& path, int64_t vocab_size,
                                                 uint64_t source);
  // One document; an empty one leaves no trace. REQUIRES ids below vocab_size.
  absl::Status Add(std::span<const int32_t> ids);
  // The file appears, whole. Without it, it never does.
  absl::Status Finish();

  int64_t documents() const { return int64_t(begins_.size()) - 1; }
  int64_t tokens() const { return begins_.back(); }

 private:
  TokenShardWriter(AtomicFile file, int64_t vocab_size, uint64_t source);
  absl::Status Flush();

  AtomicFile file_;
  int64_t vocab_size_;
  uint64_t source_;
  int64_t token_bytes_;
  std::vector<int64_t> begins_ = {0};
  std::vector<uint32_t> checksums_;
  std::vector<uint8_t> block_;  // tokens not yet written
};

class TokenShard {
 public:
  // InvalidArgument naming the file and the rule that it breaks.
  static absl::StatusOr<TokenShard> Open(const std::string& path);
  // The same of bytes that outlive the shard.
  static absl::StatusOr<TokenShard> Parse(absl::Span<const uint8_t> bytes, std::string name);

  const std::string& name() const { return name_; }
  int64_t documents() const { return documents_; }
  int64_t tokens() const { return tokens_; }
  int64_t vocab_size() const { return vocab_size_; }
  uint64_t source() const { return source_; }
  // Equal for shards of equal content: the checksum of the tables, which hold the tokens'.
  uint32_t checksum() const { return checksum_; }

  // REQUIRES 0 <= document < documents().
  int64_t Length(int64_t document) const;
  // Tokens [first, first + count) of a document. DataLoss naming file and block if what it lies in
  // is damaged. REQUIRES: they exist.
  absl::Status Read(int64_t document, int64_t first, int64_t count, int32_t* ids) const;

 private:
  TokenShard() = default;
  int64_t Begin(int64_t document) const;  // 0 <= document <= documents()
  absl::Status CheckHeader(absl::Span<const uint8_t> bytes);
  absl::Status CheckTables();
  absl::Status CheckBlock(int64_t block) const;
  absl::Status Wrong(absl::string_view rule) const;

  std::optional<MappedFile> file_;
  std::string name_;
  int64_t token_bytes_ = 0, vocab_size_ = 0, documents_ = 0, tokens_ = 0, blocks_ = 0;
  uint64_t source_ = 0;
  uint32_t checksum_ = 0;
  absl::Span<const uint8_t> token_data_, begins_, checksums_;
  std::unique_ptr<std::atomic<bool>[]> checked_;  // per block
};

}  // namespace toroid
