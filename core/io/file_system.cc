#include "core/io/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

absl::Status Result(const std::string& path, int code) {
  return code == 0 ? absl::OkStatus() : SystemError(path, errno);
}

class PosixWritable final : public WritableFile {
 public:
  PosixWritable(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}
  ~PosixWritable() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  absl::Status Append(absl::Span<const uint8_t> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return SystemError(path_, errno);
      bytes.remove_prefix(size_t(written));
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override { return Result(path_, ::fsync(descriptor_)); }
  absl::Status Close() override {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    return Result(path_, ::close(descriptor));
  }

 private:
  const std::string path_;
  int descriptor_;
};

class PosixReadable final : public ReadableFile {
 public:
  PosixReadable(std::string path, int descriptor, int64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}
  ~PosixReadable() override { ::close(descriptor_); }

  int64_t size() const override { return size_; }
  absl::Status Read(int64_t offset, absl::Span<uint8_t> out) const override {
    while (!out.empty()) {
      const ssize_t read = ::pread(descriptor_, out.data(), out.size(), offset);
      if (read < 0 && errno == EINTR) continue;
      if (read < 0) return SystemError(path_, errno);
      if (read == 0) {
        return absl::DataLossError(absl::StrCat(path_, ": ends at byte ", offset));
      }
      offset += read;
      out.remove_prefix(size_t(read));
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int descriptor_;
  const int64_t size_;
};

class PosixFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) return SystemError(path, errno);
    return std::make_unique<PosixWritable>(path, descriptor);
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    // O_NONBLOCK: a named pipe is refused below instead of waited for.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return SystemError(path, errno);
    struct stat info;
    if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(descriptor);
      return absl::DataLossError(absl::StrCat(path, ": not a regular file"));
    }
    return std::make_unique<PosixReadable>(path, descriptor, int64_t(info.st_size));
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    DIR* stream = ::opendir(directory.c_str());
    if (stream == nullptr) return SystemError(directory, errno);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      errno = 0;
    }
    const int error = errno;
    ::closedir(stream);
    if (error != 0) return SystemError(directory, error);
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status CreateDirectory(const std::string& path) override {
    return Result(path, ::mkdir(path.c_str(), 0777));
  }

  absl::Status SyncDirectory(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return SystemError(path, errno);
    const int code = ::fsync(descriptor);
    // Some network file systems know no sync of a directory: their server has done it before.
    const int error = code != 0 && errno != EINVAL && errno != ENOTSUP ? errno : 0;
    ::close(descriptor);
    return error == 0 ? absl::OkStatus() : SystemError(path, error);
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    return Result(absl::StrCat(from, " to ", to), ::rename(from.c_str(), to.c_str()));
  }
  absl::Status RemoveFile(const std::string& path) override {
    return Result(path, ::unlink(path.c_str()));
  }
  absl::Status RemoveDirectory(const std::string& path) override {
    return Result(path, ::rmdir(path.c_str()));
  }
};

}  // namespace

absl::Status SystemError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EEXIST:
    case ENOTEMPTY:
      return absl::AlreadyExistsError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

FileSystem& PosixFiles() {
  static PosixFileSystem files;
  return files;
}

absl::Status CreateDirectories(FileSystem& files, std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty() || files.List(path).ok()) return absl::OkStatus();
  const size_t slash = path.find_last_of('/');
  const std::string above = slash == std::string::npos ? "."
                            : slash == 0               ? "/"
                                                       : path.substr(0, slash);
  TOROID_RETURN_IF_ERROR(CreateDirectories(files, above));
  const absl::Status created = files.CreateDirectory(path);
  if (!created.ok() && !absl::IsAlreadyExists(created)) return created;
  return files.SyncDirectory(above);
}

absl::Status RemoveTree(FileSystem& files, const std::string& directory) {
  const absl::StatusOr<std::vector<std::string>> names = files.List(directory);
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(names.status());
  for (const std::string& name : *names) {
    const absl::Status removed = files.RemoveFile(absl::StrCat(directory, "/", name));
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  const absl::Status removed = files.RemoveDirectory(directory);
  return absl::IsNotFound(removed) ? absl::OkStatus() : removed;
}

absl::Status WriteWhole(FileSystem& files, const std::string& path, absl::string_view text) {
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file, files.Create(path));
  TOROID_RETURN_IF_ERROR(
      file->Append({reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  TOROID_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

absl::StatusOr<std::string> ReadWhole(FileSystem& files, const std::string& path, int64_t limit) {
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, files.Open(path));
  if (file->size() > limit) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", file->size(), " bytes; a file of this kind has at most ", limit));
  }
  std::string text(size_t(file->size()), '\0');
  TOROID_RETURN_IF_ERROR(file->Read(0, {reinterpret_cast<uint8_t*>(text.data()), text.size()}));
  return text;
}

}  // namespace toroid
