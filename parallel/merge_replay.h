// Replay: makes the merges of one pod's run again, from the log of merges and the contributions
// that were kept (merge_history.h), bit for bit.
//
// Of outer weights (diloco, streaming): each mean delta from the contributions, then the outer step
// on the outer weights that the replay holds, which must have the hash that the log has. Of
// gradients (exact, delayed): each mean gradient, then the step's update of the weights
// (weights_replay.h), which must have the hash that the run has told, if it has told one. In both
// the contributions must have the hashes that the log has, and a launch must begin with what the
// one before has come to.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
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
  // Of gradients: the weights made again, where they were compared with what the run has told.
  struct Weights {
    int64_t compared = 0;         // steps
    int64_t first = 0, last = 0;  // of them, counted from 1
    uint64_t hash = 0;            // after the last
    std::string not_made;         // why none could be made; empty: they were
  };
  std::optional<Weights> weights;
  // "merge of step 12, fragment 1: ..", "step 12: the weights ..": the first that differs; empty:
  // none does.
  std::string differs;
  bool same() const { return differs.empty(); }
};

struct ReplayOptions {
  // What the run has told of its weights: ParamHash after so many steps.
  std::map<int64_t, uint64_t> param_hashes;
  // False: of steps behind the beginning of the last launch an earlier one has told, which is not
  // compared.
  bool told_by_last_launch = true;
  std::function<void(int64_t done, int64_t all)> on_progress = [](int64_t, int64_t) {};  // merges
};

// directory: of a pod's run. NotFound, FailedPrecondition: what is missing for a replay; DataLoss:
// a file that is damaged.
absl::StatusOr<ReplayedMerges> ReplayMerges(FileSystem& files, const std::string& directory,
                                            const ReplayOptions& options);

// The first merge of which the logs of several pods say different things, where both have it:
// "merge of step 12, fragment 1: pod-0 has .., pod-1 ..". Empty: there is none.
absl::StatusOr<std::string> CompareMergeLogs(FileSystem& files,
                                             const std::vector<std::string>& directories);

}  // namespace toroid
