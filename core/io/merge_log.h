// MergeLog: what pods merged, in order: which outer step and fragment, in which view of the
// membership, who took part with which weight, and hashes of what went in and came out. A run's
// weights can be computed again from it and the contributions.
//
// File: "toroid merges 1\n", then records: length of the body (u32), CRC-32C of the body (u32), the
// body: step (i64), view (u64), result (u64), fragment (u32), inputs (u32), of each input pod
// (i64), weight (f64), hash (u64); little-endian. A writer that dies leaves a torn last record,
// which readers leave out and the next writer cuts off. Damage before the end is DataLoss.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/file_system.h"

namespace toroid {

struct MergeInput {
  int64_t pod = 0;
  double weight = 0;  // finite, not negative
  uint64_t hash = 0;  // of the numbers that were merged, as decoded
  bool operator==(const MergeInput&) const = default;
};

struct MergeRecord {
  int64_t step = 0;  // outer step, or step of training
  uint64_t view = 0;
  int64_t fragment = 0;            // in [0, 2^32)
  std::vector<MergeInput> inputs;  // in pod order, the order of the sum
  uint64_t result = 0;             // hash of the sum
  bool operator==(const MergeRecord&) const = default;
};

constexpr int64_t kMostMergeInputs = 4096;  // of a record

struct MergeRecords {
  std::vector<MergeRecord> records;
  int64_t bytes = 0;  // of the header and these records
  int64_t torn = 0;   // bytes after them, of a record that was not written whole
};

// `name`: for errors. DataLoss: damaged, or no such log.
absl::StatusOr<MergeRecords> ParseMergeLog(absl::string_view bytes, absl::string_view name);
// NotFound if there is none.
absl::StatusOr<MergeRecords> ReadMergeLog(FileSystem& files, const std::string& path);

// One thread at a time.
class MergeLog {
 public:
  // The log at `path`, whose records of `step` and later are taken out (a run that goes on from a
  // checkpoint makes those merges again); a new one if there is none. What is kept is written anew
  // beside it and renamed: the old log or the new is there whole. Durable when it returns.
  static absl::StatusOr<std::unique_ptr<MergeLog>> Open(FileSystem& files, const std::string& path,
                                                        int64_t step);

  // Durable after Sync. The first error stays, since what is in the file is then unknown.
  // InvalidArgument, which does not: the record is none that a reader takes.
  absl::Status Append(const MergeRecord& record);
  absl::Status Sync();

  int64_t records() const { return records_; }  // in the file

 private:
  MergeLog(std::unique_ptr<WritableFile> file, int64_t records)
      : file_(std::move(file)), records_(records) {}

  std::unique_ptr<WritableFile> file_;
  int64_t records_;
  absl::Status status_;
};

}  // namespace toroid
