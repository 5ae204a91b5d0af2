// TickingFiles: a file system that gives a life sign after every call, so that whoever watches a
// rank sees a slow disk from one that has stopped.
//
// What it counts is the base's calls that have returned, whatever they returned. Thread-safe as
// the base is.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/io/file_system.h"

namespace toroid {

class TickingFiles final : public FileSystem {
 public:
  // Both outlive this and its files; `ticks` may be null: nothing is counted.
  TickingFiles(FileSystem& base, std::atomic<int64_t>* ticks) : base_(base), ticks_(ticks) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status RemoveFile(const std::string& path) override;
  absl::Status RemoveDirectory(const std::string& path) override;

 private:
  FileSystem& base_;
  std::atomic<int64_t>* const ticks_;
};

}  // namespace toroid
