// toroid verify --replay RUN (launcher/verify.cc).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "launcher/command_line.h"
#include "parallel/merge_replay.h"

namespace toroid {

struct ReplayResult {
  std::vector<std::pair<std::string, ReplayedMerges>> pods;  // by directory
  std::string differs;  // the first merge or step that does; empty: none
};

// Exit code 1: a merge differs from the log, weights from what the run has told, or the logs of two
// pods; 3: something is missing.
absl::Status ReplayRun(const Arguments& arguments);

}  // namespace toroid
