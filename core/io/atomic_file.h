// A file that is there whole or not at all: written under another name beside its own, put on the
// disk, and renamed. A writer that is killed leaves at most `PATH.partial-XXXXXX`, which
// RemoveAbandoned takes away once no process writes it.
//
// Not thread-safe. A file of the same name is replaced.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace toroid {

class AtomicFile {
 public:
  // Errors of all functions name the path. A full disk is ResourceExhausted.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // not committed: removed

  absl::Status Append(absl::Span<const uint8_t> bytes);
  // Replaces bytes written before. REQUIRES offset + bytes.size() <= written().
  absl::Status Overwrite(int64_t offset, absl::Span<const uint8_t> bytes);
  int64_t written() const { return written_; }

  // Bytes to the disk, then the rename, then the directory to the disk. Once.
  absl::Status Commit();

  // Removes what killed writers of `path` left.
  static absl::Status RemoveAbandoned(const std::string& path);

 private:
  AtomicFile(std::string path, std::string partial, int descriptor)
      : path_(std::move(path)), partial_(std::move(partial)), descriptor_(descriptor) {}

  std::string path_, partial_;
  int descriptor_ = -1;  // -1: moved from, or committed
  int64_t written_ = 0;
};

}  // namespace toroid
