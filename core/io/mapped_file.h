// A file mapped read-only into memory. Pages come in when they are read and can be dropped when
// they have been copied elsewhere, so that a process which loads a model stays near what it
// accounts for.
//
// The bytes are untrusted: whoever reads them checks them. A file that is truncated while it is
// mapped kills its reader (SIGBUS); model files are written once and renamed into place.
// Thread-safe: const methods may be called from any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace toroid {

class MappedFile {
 public:
  // NotFound or PermissionDenied naming the path; InvalidArgument if it is empty or no regular
  // file.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Drops the pages that hold these bytes from this process: they may be read again, from the page
  // cache. REQUIRES: begin and size lie within bytes().
  void Release(const uint8_t* begin, int64_t size) const;

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// The whole of a small text file. InvalidArgument if it is larger than `limit` bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t limit);

}  // namespace toroid
