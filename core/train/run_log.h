// RunLog: what happened to one rank of a run, DIRECTORY/logs/rank-0003.log, one JSON object a line:
//   {"time","monotonic_s","job","epoch","rank","step","event","text"}
// "time" is the wall clock's, UTC; "monotonic_s" that of its host since it booted: between two
// lines of one host it tells true even if somebody set the clock. Lines of later launches are
// added. Movable; one thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace toroid {

class RunLog {
 public:
  struct Origin {
    std::string job;  // its name; may be empty
    int64_t epoch = 0;
    int64_t rank = 0;
  };
  // Makes the directory if need be. PermissionDenied.
  static absl::StatusOr<RunLog> Open(const std::string& directory, const Origin& origin);
  // step: done so far. Unavailable: the disk; nothing is written from then on.
  absl::Status Write(const char* event, const std::string& text, int64_t step);

 private:
  struct Closes {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  RunLog() = default;
  std::string path_;
  Origin origin_;
  std::unique_ptr<FILE, Closes> file_;
};

// "DIRECTORY/logs/rank-0003.log"
std::string RunLogPath(const std::string& directory, int64_t rank);

}  // namespace toroid
