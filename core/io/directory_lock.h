// DirectoryLock: a directory that one process uses at a time.
//
// It is flock(2) on DIR/lock, which the system gives back however the process ends. The file stays;
// what it says, "HOST, pid PID", is who took the lock last. Movable; not thread-safe.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace toroid {

class DirectoryLock {
 public:
  // FailedPrecondition naming directory and holder if another has it, Unimplemented if the file
  // system knows no locks; other errors name the path. REQUIRES that the directory is there.
  static absl::StatusOr<DirectoryLock> Take(const std::string& directory);

  DirectoryLock(DirectoryLock&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  ~DirectoryLock();  // gives it back

 private:
  explicit DirectoryLock(int file) : file_(file) {}

  int file_;  // -1: moved from
};

}  // namespace toroid
