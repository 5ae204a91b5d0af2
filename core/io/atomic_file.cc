#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/file_system.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

absl::Status WriteAll(const std::string& path, int descriptor, absl::Span<const uint8_t> bytes,
                      int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(path, errno);
    bytes.remove_prefix(size_t(n));
    offset += n;
  }
  return absl::OkStatus();
}

std::string DirectoryOf(const std::string& path) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  return directory.empty() ? "." : directory;
}

constexpr char kPartial[] = ".partial-";

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  std::string partial = absl::StrCat(path, kPartial, "XXXXXX");
  const int descriptor = ::mkostemp(partial.data(), O_CLOEXEC);
  if (descriptor < 0) return SystemError(path, errno);
  AtomicFile file(path, std::move(partial), descriptor);
  // The lock goes with its holder: RemoveAbandoned sees by it who lives. Where a file system has no
  // locks, nothing is taken for abandoned either.
  (void)::flock(descriptor, LOCK_EX | LOCK_NB);
  if (::fchmod(descriptor, 0644) != 0) return SystemError(path, errno);
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      partial_(std::move(other.partial_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      written_(other.written_) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::unlink(partial_.c_str());
  ::close(descriptor_);
}

absl::Status AtomicFile::Append(absl::Span<const uint8_t> bytes) {
  TOROID_CHECK_GE(descriptor_, 0);
  TOROID_RETURN_IF_ERROR(WriteAll(path_, descriptor_, bytes, written_));
  written_ += int64_t(bytes.size());
  return absl::OkStatus();
}

absl::Status AtomicFile::Overwrite(int64_t offset, absl::Span<const uint8_t> bytes) {
  TOROID_CHECK_GE(descriptor_, 0);
  TOROID_CHECK_LE(offset + int64_t(bytes.size()), written_);
  return WriteAll(path_, descriptor_, bytes, offset);
}

absl::Status AtomicFile::Commit() {
  TOROID_CHECK_GE(descriptor_, 0);
  if (::fsync(descriptor_) != 0) return SystemError(path_, errno);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) return SystemError(path_, errno);
  ::close(std::exchange(descriptor_, -1));
  const int directory = ::open(DirectoryOf(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return SystemError(path_, errno);
  const int result = ::fsync(directory);
  const int error = errno;
  ::close(directory);
  // Some network file systems cannot sync a directory and need not.
  if (result != 0 && error != EINVAL) return SystemError(path_, error);
  return absl::OkStatus();
}

absl::Status AtomicFile::RemoveAbandoned(const std::string& path) {
  const std::string directory = DirectoryOf(path);
  const std::string prefix =
      absl::StrCat(std::filesystem::path(path).filename().string(), kPartial);
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string entry = entries->path().string();
    if (!absl::StartsWith(entries->path().filename().string(), prefix)) continue;
    const int descriptor = ::open(entry.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) continue;  // it was renamed or removed just now
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(entry.c_str());
    ::close(descriptor);
  }
  if (error) return SystemError(directory, error.value());
  return absl::OkStatus();
}

}  // namespace toroid
