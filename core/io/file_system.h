// FileSystem: the one seam through which checkpoints are written, listed and read.
//
// It is virtual so that a test can stop the writer at every call, lose what was not synced, or say
// that the disk is full (tests/support/faulty_files.h): what LevelDB's Env is for. Every call is
// one system call, or a few that cannot be told apart from outside. What a call did is durable only
// after the Sync that its comment names.
//
// Paths are absolute or relative to the working directory. Errors name the path: NotFound,
// AlreadyExists, PermissionDenied, ResourceExhausted (no space, no quota), Unavailable for all
// else. Thread-safe; a file is used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace toroid {

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes; what was not synced may be lost
  virtual absl::Status Append(absl::Span<const uint8_t> bytes) = 0;
  // The bytes are durable; the file's name is so after SyncDirectory.
  virtual absl::Status Sync() = 0;
  // The last call. Some shared file systems say only here that a write has failed.
  virtual absl::Status Close() = 0;
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual int64_t size() const = 0;  // bytes, when it was opened
  // out.size() bytes from `offset` on; DataLoss if the file ends before.
  virtual absl::Status Read(int64_t offset, absl::Span<uint8_t> out) const = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // A new, empty file. AlreadyExists if there is one.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) = 0;
  // Names of all entries, sorted.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
  virtual absl::Status CreateDirectory(const std::string& path) = 0;
  // What was created, renamed or removed in this directory so far is durable.
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // At once or not at all. AlreadyExists if `to` is a directory that holds something.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status RemoveFile(const std::string& path) = 0;
  virtual absl::Status RemoveDirectory(const std::string& path) = 0;  // an empty one
};

// The operating system's.
FileSystem& PosixFiles();
// An errno of the operating system as the errors above.
absl::Status SystemError(const std::string& path, int error);

// The directory, and those above it, if they are not there yet; each is synced into the one above.
absl::Status CreateDirectories(FileSystem& files, std::string path);
// A directory of files. What is not there is no error.
absl::Status RemoveTree(FileSystem& files, const std::string& directory);
// A new small file; its bytes are durable when this returns.
absl::Status WriteWhole(FileSystem& files, const std::string& path, absl::string_view text);
// The whole of a small file. DataLoss if it is larger than `limit` bytes.
absl::StatusOr<std::string> ReadWhole(FileSystem& files, const std::string& path, int64_t limit);

}  // namespace toroid
