// StallWatch: a thread per rank that notices when the world has stopped, says where each rank was
// and which one is to blame, and ends the world: mpirun reaps dead ranks but never notices a
// stopped one.
//
// It wakes a few times a second, sends the rank's progress to all other watches and judges
// (StallJudge). The lowest rank that answers prints the report on stderr and ends the world with
// exit code 1; should it not, another does after a few seconds.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/communicator.h"
#include "parallel/progress_board.h"
#include "parallel/stall_judge.h"

namespace toroid {

// How the watches of a world reach each other. Called by one thread at a time.
struct StallChannel {
  int rank = 0;
  std::vector<std::string> hosts;  // by rank
  // Never blocks; drops the beat where an earlier one is still on its way.
  std::function<void(int to, const StallBeat& beat)> send;
  // One beat if one is there. Never blocks.
  std::function<bool(int* from, StallBeat* beat)> receive;
  // Prints the lines and ends all ranks. May return (in tests).
  std::function<void(const std::vector<std::string>& lines)> end_world;
};

// The channel of a world of NewMpiWorld, over a communicator of its own; for a world of one rank
// one without peers. Collective.
StallChannel NewStallChannel(Communicator& world);

class StallWatch {
 public:
  // The board outlives the watch. All ranks of the world make a watch with the same timeout.
  StallWatch(const ProgressBoard* board, StallChannel channel, std::chrono::milliseconds timeout);
  // Tells the others that it leaves.
  ~StallWatch();

  // Where every rank is, as far as this one has heard, for reports of progress. Any thread.
  std::vector<RankProgress> Ranks() const;

 private:
  void Run();
  void Listen(StallJudge::Time now);

  const ProgressBoard* const board_;
  const StallChannel channel_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_, as is judge_
  StallJudge judge_;
  std::thread thread_;
};

}  // namespace toroid
