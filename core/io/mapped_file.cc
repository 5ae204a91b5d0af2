#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

absl::Status SystemError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: a named pipe is refused below instead of waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return SystemError(path, errno);
  struct stat info;
  if (::fstat(descriptor, &info) != 0) {
    const int error = errno;
    ::close(descriptor);
    return SystemError(path, error);
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    ::close(descriptor);
    return absl::InvalidArgumentError(
        absl::StrCat(path, S_ISREG(info.st_mode) ? ": the file is empty" : ": not a regular file"));
  }
  void* data = ::mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_SHARED, descriptor, 0);
  const int error = errno;
  ::close(descriptor);  // the mapping keeps the file
  if (data == MAP_FAILED) return SystemError(path, error);
  return MappedFile(path, static_cast<const uint8_t*>(data), size_t(info.st_size));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::Release(const uint8_t* begin, int64_t size) const {
  if (size == 0) return;
  TOROID_CHECK(begin >= data_ && begin + size <= data_ + size_);
  // Rounded outwards: a neighbour's bytes on the first or last page are read again when needed.
  const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t start = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = start / page * page;
  const uintptr_t last = (start + uintptr_t(size) + page - 1) / page * page;
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t limit) {
  TOROID_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = file.bytes();
  if (int64_t(bytes.size()) > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes.size(), " bytes; a file of this kind has at most ", limit));
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace toroid
