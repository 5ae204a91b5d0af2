// Replay: makes the merges of one pod's run again, from the log of merges and the contributions
// that were kept (merge_history.h), bit for bit.
//
// Of outer weights (diloco, streaming): each mean delta from the contributions, then the outer step
// on the outer weights that the replay holds, which must have the hash that the log has. Of
// gradients (exact, delayed): each mean gradient; weights follow from those, the optimizer and
// where the run began, none of which is made again here. In both the contributions must have the
// hashes that the log has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/file_system.h"

namespace toroid {

struct ReplayedMerges {
  int64_t merges = 0;    // in the log
  int64_t replayed = 0;  // the same bits, up to the first that differs
  bool outer = false;    // outer weights, not gradients
  uint64_t hash = 0;     // of all outer weights at the end, if none differs
  // "merge of step 12, fragment 1: ..": the first that differs; empty: none does.
  std::string differs;
  bool same() const { return differs.empty(); }
};

// directory: of a pod's run. on_progress(done, all) is told of merges. NotFound,
// FailedPrecondition: what is missing for a replay; DataLoss: a file that is damaged.
absl::StatusOr<ReplayedMerges> ReplayMerges(
    FileSystem& files, const std::string& directory,
    const std::function<void(int64_t done, int64_t all)>& on_progress);

// The first merge of which the logs of several pods say different things, where both have it:
// "merge of step 12, fragment 1: pod-0 has .., pod-1 ..". Empty: there is none.
absl::StatusOr<std::string> CompareMergeLogs(FileSystem& files,
                                             const std::vector<std::string>& directories);

}  // namespace toroid
