// One rank's file of a checkpoint.
//
//   header   64 bytes: "TOROIDSH", save id, step, rank, ranks, bytes of data, 16 zeros
//   data     values, little-endian
//   hashes   8 bytes for each block of 1 MiB of data, the last one shorter
//
// The manifest holds the file's length and the hash of header and hashes; so what a rank reads is
// proved by reading those blocks alone, and a rank of another mesh need not read whole files.
// Save id, step and rank are there for messages: a file that is sound but not this one is called by
// its name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/io/file_system.h"

namespace toroid {

struct ShardHeader {
  uint64_t save_id = 0;
  int64_t step = 0, rank = 0, ranks = 0;
  bool operator==(const ShardHeader&) const = default;
};

// What the manifest says of a file.
struct ShardSeal {
  int64_t bytes = 0;
  uint64_t hash = 0;
};

// Bytes of a file that holds so many of data.
int64_t ShardBytes(int64_t data_bytes);

// Writes a file whose data comes in pieces. Holds one block. One thread at a time.
class ShardWriter {
 public:
  // Creates the file. The errors of all functions name the path.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Create(FileSystem& files,
                                                             const std::string& path,
                                                             const ShardHeader& header,
                                                             int64_t data_bytes);
  absl::Status Append(absl::Span<const uint8_t> data);
  // The file is synced when this returns. REQUIRES: data_bytes were appended.
  absl::StatusOr<ShardSeal> Finish();

 private:
  ShardWriter() = default;
  absl::Status WriteBlock(absl::Span<const uint8_t> block);

  std::unique_ptr<WritableFile> file_;
  ShardHeader header_;
  int64_t data_bytes_ = 0, written_ = 0;
  std::vector<uint8_t> block_;  // begun
  std::vector<uint64_t> hashes_;
};

// The same of data that is at hand whole.
absl::StatusOr<ShardSeal> WriteShard(FileSystem& files, const std::string& path,
                                     const ShardHeader& header, absl::Span<const uint8_t> data);

// Reads a file and proves what it reads. Holds one block. One thread at a time.
class ShardReader {
 public:
  // DataLoss naming the path and what is wrong: missing, of another length, of another rank, step
  // or checkpoint, damaged. Other errors as the file system's.
  static absl::StatusOr<std::unique_ptr<ShardReader>> Open(FileSystem& files,
                                                           const std::string& path,
                                                           const ShardHeader& header,
                                                           const ShardSeal& seal);
  // Bytes [offset, + out.size()) of the data. DataLoss naming the path if they are damaged.
  // REQUIRES: within the data.
  absl::Status Read(int64_t offset, absl::Span<uint8_t> out);

 private:
  ShardReader() = default;
  absl::Status ReadBlock(int64_t block);

  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  int64_t data_bytes_ = 0;
  std::vector<uint64_t> hashes_;
  std::vector<uint8_t> block_;
  int64_t held_ = -1;  // in block_
};

}  // namespace toroid
