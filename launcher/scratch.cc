#include "launcher/scratch.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace toroid {

absl::StatusOr<ScratchDir> ScratchDir::Make(const std::string& name) {
  const char* parent = std::getenv("TMPDIR");
  std::string path =
      absl::StrCat(parent != nullptr && *parent != '\0' ? parent : "/tmp", "/", name, "-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot make a temporary directory: ", path,
                                                      ": ", std::strerror(errno), ": set TMPDIR"));
  }
  ScratchDir dir;
  dir.path_ = path;
  return dir;
}

void ScratchDir::Remove() {
  if (path_.empty()) return;
  std::error_code ignored;  // what cannot be removed is left to the system's own cleaning
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace toroid
