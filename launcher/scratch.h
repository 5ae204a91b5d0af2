// A temporary directory of this process, mode 0700, removed with everything in
// it at the end.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace toroid {

class ScratchDir {
 public:
  ScratchDir() = default;
  // $TMPDIR/NAME-XXXXXX, or under /tmp.
  static absl::StatusOr<ScratchDir> Make(const std::string& name);
  ~ScratchDir() { Remove(); }
  ScratchDir(ScratchDir&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ScratchDir& operator=(ScratchDir&& other) noexcept {
    Remove();
    path_ = std::exchange(other.path_, "");
    return *this;
  }
  const std::string& path() const { return path_; }

 private:
  void Remove();
  std::string path_;
};

}  // namespace toroid
