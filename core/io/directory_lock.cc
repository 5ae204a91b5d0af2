#include "core/io/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "core/io/file_system.h"

namespace toroid {
namespace {

std::string ThisProcess() {
  char host[256] = "";
  (void)gethostname(host, sizeof(host) - 1);
  return absl::StrCat(host, ", pid ", getpid());
}

// What the holder wrote; it may not have come to that yet.
std::string Holder(int file) {
  char text[512];
  const ssize_t size = pread(file, text, sizeof(text), 0);
  return size > 0 ? std::string(text, size_t(size)) : "another process";
}

}  // namespace

absl::StatusOr<DirectoryLock> DirectoryLock::Take(const std::string& directory) {
  const std::string path = directory + "/lock";
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) return SystemError(path, errno);
  DirectoryLock lock(file);
  if (flock(file, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return absl::FailedPreconditionError(
          absl::StrCat(directory, ": another run uses this directory: on host ", Holder(file),
                       ": wait for its end or name another directory"));
    }
    if (errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOLCK) {
      return absl::UnimplementedError(
          absl::StrCat(directory,
                       ": its file system has no locks: nothing keeps another run from "
                       "using this directory at the same time"));
    }
    return SystemError(path, errno);
  }
  const std::string own = ThisProcess();
  // A full disk may take no name; the lock is held all the same.
  if (ftruncate(file, 0) == 0) (void)!pwrite(file, own.data(), own.size(), 0);
  return lock;
}

DirectoryLock::~DirectoryLock() {
  if (file_ >= 0) close(file_);
}

}  // namespace toroid
