// Evidence of a failure: what a rank was doing when it died, in EVIDENCE/rank-0003.txt of the run
// that it was at. Why it died, its last operations (ProgressBoard) and its stack.
//
// One rank per process: this is state of the process. The handlers do nothing but what a signal
// handler may do (signal-safety(7); backtrace's library is loaded beforehand), then hand the signal
// on to whoever had it before.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "parallel/progress_board.h"

namespace toroid {

// From now on this process is rank `rank`, whose places are on `board`, and fatal signals (SEGV,
// BUS, FPE, ILL, ABRT) and TERM, with which a launcher ends the ranks beside one that died, leave
// evidence where KeepEvidence says. Called once, by the rank's thread, behind other handlers of
// these signals; `board` lives as long as the process computes.
void CatchFailures(const ProgressBoard* board, int rank);

// While it lives, failures of the rank whose board this is leave evidence in `directory`, which is
// made when there is some. Nothing for other boards, null, or without CatchFailures.
class KeepEvidence {
 public:
  KeepEvidence(const ProgressBoard* board, const std::string& directory);
  ~KeepEvidence();
  KeepEvidence(const KeepEvidence&) = delete;
  KeepEvidence& operator=(const KeepEvidence&) = delete;
  // Evidence of an error that no signal told, with this thread's stack.
  void Write(absl::string_view why) const;

 private:
  const bool kept_;
};

// Evidence of a world that has stopped, with the stack of the rank's thread, from another thread.
void WriteStallEvidence(absl::string_view why);

}  // namespace toroid
