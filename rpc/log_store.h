// What worlds wrote, one file a job: lines with rank and stream, addressed by byte offset.
//
// A file is capped; what comes later is dropped, after one line that says so. Soft state: not
// synced. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rpc/job.h"

namespace toroid {

class LogStore {
 public:
  // dir exists. cap: bytes of one job's log.
  explicit LogStore(std::string dir, int64_t cap = int64_t{64} << 20)
      : dir_(std::move(dir)), cap_(cap) {}

  // REQUIRES: job is an id that the controller made (no path separators).
  void Append(const std::string& job, const std::vector<LogLine>& lines);
  // Lines from byte `offset` on, at most about `limit` bytes. OutOfRange: beyond the end, or not at
  // the beginning of a line.
  absl::StatusOr<std::vector<LogLine>> Read(const std::string& job, uint64_t offset, int64_t limit);
  uint64_t End(const std::string& job);
  void Delete(const std::string& job);

 private:
  std::string Path(const std::string& job) const { return dir_ + "/" + job + ".log"; }

  const std::string dir_;
  const int64_t cap_;
  std::mutex mutex_;
};

}  // namespace toroid
