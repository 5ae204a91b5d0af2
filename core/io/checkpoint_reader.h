// A checkpoint opened for reading: any elements of any whole parameter, whatever mesh wrote it.
// Every byte that is handed out has been proved against the manifest's hashes.
//
// Holds a few open shards, a block of 1 MiB each. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "core/io/checkpoint_manifest.h"
#include "core/io/checkpoint_shard.h"
#include "core/io/file_system.h"

namespace toroid {

class CheckpointReader {
 public:
  using Kind = CheckpointManifest::Kind;

  // Reads and checks the manifest. NotFound if the directory does not exist; DataLoss naming the
  // file that is missing or damaged.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(FileSystem& files,
                                                                const std::string& directory);

  const std::string& directory() const { return directory_; }
  const CheckpointManifest& manifest() const { return manifest_; }
  uint64_t hash() const { return hash_; }  // the manifest's, which names the checkpoint
  // -1: there is no such parameter.
  int64_t FindParameter(const std::string& name) const;

  // Elements [begin, begin + count) of a rectangle, row after row, of manifest().dtype. DataLoss
  // naming the shard that is missing or damaged. kind: a Kind, or kKinds + i of manifest().also[i].
  // REQUIRES: within the parameter.
  absl::Status Read(int kind, int64_t parameter, const ParamSlice& slice, int64_t begin,
                    int64_t count, void* out);
  // DataLoss if the directory's name is that of another step or branch.
  absl::Status CheckName() const;
  // DataLoss if the shard is missing, or its length, header or table of hashes is wrong; its values
  // are not read.
  absl::Status CheckShard(int64_t rank) { return Shard(rank).status(); }
  absl::Status CheckShards();
  // Reads a shard whole; all of them.
  absl::Status VerifyShard(int64_t rank);
  absl::Status Verify();

 private:
  // Where a piece lies in its shard: elements of one kind.
  struct Place {
    int64_t shard = 0, piece = 0, offset = 0;
  };
  struct OpenShard {
    int64_t rank = -1;
    std::unique_ptr<ShardReader> reader;
  };

  CheckpointReader(FileSystem& files, std::string directory)
      : files_(files), directory_(std::move(directory)) {}
  absl::StatusOr<ShardReader*> Shard(int64_t rank);
  absl::Status ReadPart(int kind, const Place& place, int64_t element, int64_t count, char* out);
  absl::Status ReadShared(int kind, const Place& place, const CheckpointPiece& wanted, char* out);

  FileSystem& files_;
  const std::string directory_;
  CheckpointManifest manifest_;
  uint64_t hash_ = 0;
  absl::flat_hash_map<std::string, int64_t> by_name_;
  std::vector<std::vector<Place>> places_;  // by parameter
  std::vector<int64_t> elements_;           // of one kind, by shard
  std::vector<OpenShard> open_;
  size_t next_open_ = 0;
};

// The path of the newest checkpoint older than this one whose manifest is sound; empty: none.
std::string CheckpointBefore(FileSystem& files, const std::string& path);
// Of DataLoss and NotFound the same with "; the checkpoint before is PATH", if there is one.
absl::Status OfferBefore(FileSystem& files, const std::string& path, const absl::Status& status);

}  // namespace toroid
