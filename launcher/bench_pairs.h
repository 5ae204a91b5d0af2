// Pairs: the same work by one rank with the threads of all and then by all ranks, in turns, so that
// a neighbour on the machine slows both alike; the other ranks sleep meanwhile. Ranks of other
// hosts bring their own cores, so the comparison means something on one host.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/communicator.h"
#include "launcher/bench.h"

namespace toroid {

struct BenchPairs {
  std::vector<double> one, all;  // seconds; `one` on rank 0 alone
};

// Every rank waits here until all have come; those who wait sleep and leave the cores alone.
void MeetQuietly(Communicator& world, Stream comm_s);

// run.samples() pairs after a warm-up, which is left out where a call lasts a minute. one, all:
// seconds of the work; `one` is called on rank 0. Collective over `world`; comm_s: a communication
// stream.
absl::Status RunPairs(BenchRun& run, const std::string& name, Communicator& world, Stream comm_s,
                      const std::function<absl::StatusOr<double>()>& one,
                      const std::function<absl::StatusOr<double>()>& all, BenchPairs& pairs);

}  // namespace toroid
