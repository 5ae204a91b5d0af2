// PodLinks between threads of one process: any number of pods and ranks, lines that a test can cut
// and heal, ranks that it can drop.
//
// A message waits in the line's queue until its receiver takes it; a cut keeps it there. A launch
// that ends loses what it had not taken, and what it sent into a cut line. What is sent to a rank
// that is not there yet, or not again, waits for it within the bound; Renew takes back what was
// meant for an earlier launch of it.
#pragma once

#include <memory>
#include <vector>

#include "parallel/pod_link.h"

namespace toroid {

// Thread-safe. Links may outlive it.
class InProcessPodNetwork {
 public:
  // queue_bytes: of the messages from one rank to another that have not been taken; one message may
  // be larger if nothing else waits.
  explicit InProcessPodNetwork(std::vector<PodRank> ranks, int64_t queue_bytes = 64 << 20);
  ~InProcessPodNetwork();

  // The link of one launch of a rank; its end is the launch's. FailedPrecondition if its epoch is
  // not above those of all launches before it, NotFound if the network has no such rank.
  absl::StatusOr<std::unique_ptr<PodLink>> Attach(PodIdentity identity);

  // The line between two ranks, both ways. Nothing to do if it is so already.
  void Cut(PodRank a, PodRank b);
  void Heal(PodRank a, PodRank b);
  // As if the rank's process had died: its link's calls give Unavailable from now on.
  void Drop(PodRank rank);
  // As if the rank's process were stopped: its link's calls do not return, whatever their deadline,
  // and nothing is heard of it, until it goes on or is dropped.
  void Stop(PodRank rank);
  void Continue(PodRank rank);

  class State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace toroid
