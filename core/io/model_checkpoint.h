// A checkpoint as a model: its weights by slice, and what can be said of it without a mesh.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/checkpoint_reader.h"
#include "core/model/params.h"
#include "kernels/dtype.h"

namespace toroid {

// Weights of a checkpoint. Every value that is handed out has been proved against the manifest's
// hashes. Thread-safe.
class CheckpointWeights {
 public:
  explicit CheckpointWeights(std::unique_ptr<CheckpointReader> reader)
      : reader_(std::move(reader)) {}

  const CheckpointManifest& manifest() const { return reader_->manifest(); }
  const std::string& directory() const { return reader_->directory(); }
  uint64_t hash() const { return reader_->hash(); }

  // A slice of a parameter as kF32, kF64 or kBF16, row after row. InvalidArgument if a value is not
  // finite; DataLoss naming the damaged shard and the checkpoint before. REQUIRES: there is such a
  // parameter, and the slice lies within it.
  absl::Status Load(const std::string& name, const ParamSlice& slice, DType stored,
                    void* out) const;

 private:
  mutable std::mutex mutex_;  // of the reader, which has a block in hand
  const std::unique_ptr<CheckpointReader> reader_;
};

// What `toroid inspect` says of a checkpoint besides the model.
struct CheckpointDescription {
  std::string path;
  CheckpointManifest manifest;
  uint64_t hash = 0;    // of the manifest
  int64_t bytes = 0;    // of all its files
  std::string before;   // the checkpoint before, if there is one that can be opened
  absl::Status status;  // the first thing that is wrong with it
  struct Shard {
    std::string name;
    int64_t bytes = 0, elements = 0;
    uint64_t hash = 0;
    absl::Status status;
  };
  std::vector<Shard> shards;  // by rank
};

// whole: every byte is read and compared with its hash; else headers and lengths alone. DataLoss
// naming the manifest, and the checkpoint before, if the manifest itself is missing or damaged.
absl::StatusOr<CheckpointDescription> DescribeCheckpoint(const std::string& directory, bool whole);

}  // namespace toroid
