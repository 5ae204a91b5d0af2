// Reads what mpirun and its ranks write on stderr: passes the ranks' words on, keeps back the
// framed paragraphs that Open MPI adds after a failure, and remembers what they say.
//
// Open MPI frames each paragraph with two lines of 74 dashes. Text before the end of a line is
// passed on at once, unless it could still become such a line. Not thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace toroid {

class MpirunFilter {
 public:
  // What of `bytes` (and of what was kept back) may be shown now.
  std::string Feed(absl::string_view bytes);
  // The end of the stream: what was kept back and is no frame.
  std::string Finish();

  // The failure in one sentence, "what happened: which thing: what to do"; empty if Open MPI said
  // nothing, or if a rank has written its own "toroid: .." line and died by an exit code.
  std::string Failure() const;

  // Ours (exit_code.h), for a run that mpirun ended with `code`: that of the rank that failed if it
  // is one of ours; 3 for a launch that the request or the hosts do not allow; else 1, so for a
  // rank that was killed.
  int ExitCode(int code) const;

  int failed_rank() const { return rank_; }  // -1: not said
  int signal() const { return signal_; }     // 0: none
  const std::string& host() const { return host_; }

 private:
  void TakeParagraph();

  std::string line_;      // the beginning of a line that may be a frame, or a line in a frame
  bool at_start_ = true;  // of a line
  bool in_frame_ = false;
  bool rank_spoke_ = false;
  std::string spoken_;     // the first bytes of the line that is being passed on
  std::string paragraph_;  // lines inside the frame, joined by blanks
  int rank_ = -1, signal_ = 0, exit_code_ = 0;
  std::string host_, signal_name_, other_;
};

}  // namespace toroid
