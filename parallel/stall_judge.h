// StallJudge: whether a world has stopped, and which rank is to blame, from what its ranks say of
// themselves. Plain logic: time is an argument, messages are passed in.
//
// Every rank's watch tells all others, a few times a second, where its rank is and for how long it
// has not moved (a beat). A rank that waits in a collective does not move either, so a world has
// stalled only when all ranks that answer and are busy have not moved for the timeout: as long as
// one moves, it is slow. The blame falls on a rank that has stopped answering (its process is
// stopped, or its host gone), else on the one furthest behind. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/progress_board.h"

namespace toroid {

// What a watch tells the others. Trivially copyable.
struct StallBeat {
  BoardReading progress;
  int64_t unmoved_ms = 0;  // for how long, when the beat was sent
  bool leaving = false;    // this watch ends in good order: silence from now on is no fault
};

// What a rank is known to be doing.
struct RankProgress {
  BoardReading progress;
  int64_t unmoved_ms = 0;  // 0 while idle
  int64_t silent_ms = 0;   // since its last beat; 0 for this rank
  bool answers = true;
};

struct StallVerdict {
  int blamed = 0;
  bool silent = false;             // it stopped answering; else it is furthest behind
  int speaker = 0;                 // the lowest rank that answers: it prints, and ends the world
  std::vector<std::string> lines;  // one per rank, then the final one
};

class StallJudge {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Milliseconds = std::chrono::milliseconds;

  // hosts: by rank. timeout: without progress.
  StallJudge(int rank, std::vector<std::string> hosts, Milliseconds timeout, Time now);

  // How often the watch should Look: ten times per timeout, between 50 and 500 ms.
  Milliseconds Interval() const;
  // This rank's board, read now; returns the beat for the others. A judge that has not looked for
  // a second was stopped itself, with its process: it then forgives everyone the time until now.
  StallBeat Look(const BoardReading& mine, Time now);
  void Hear(int rank, const StallBeat& beat, Time now);
  std::optional<StallVerdict> Judge(Time now) const;
  std::vector<RankProgress> Ranks(Time now) const;

  static constexpr Milliseconds kSilence{2000};  // a rank without a beat for this long is silent
  static constexpr Milliseconds kOwnGap{1000};

 private:
  struct Known {
    StallBeat beat;
    Time heard;
  };
  std::string Place(int rank) const;

  const int rank_;
  const std::vector<std::string> hosts_;
  const Milliseconds timeout_;
  std::vector<Known> known_;  // by rank
  Time looked_, moved_;       // moved_: this rank's last progress
};

}  // namespace toroid
