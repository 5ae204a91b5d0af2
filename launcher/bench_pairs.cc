#include "launcher/bench_pairs.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr double kWarmSeconds = 60;  // of one call, after which there is nothing left to warm up

}  // namespace

void MeetQuietly(Communicator& world, Stream comm_s) {
  world.Barrier(comm_s);
  while (!comm_s.cpu->idle()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

absl::Status RunPairs(BenchRun& run, const std::string& name, Communicator& world, Stream comm_s,
                      const std::function<absl::StatusOr<double>()>& one,
                      const std::function<absl::StatusOr<double>()>& all, BenchPairs& pairs) {
  bool warm = false;
  while (int(pairs.all.size()) < run.samples()) {
    run.Begin(name);
    absl::StatusOr<double> alone = 0.0;
    if (world.rank() == 0) alone = one();
    MeetQuietly(world, comm_s);
    TOROID_RETURN_IF_ERROR(ShareStatus(world, alone.status()));
    TOROID_ASSIGN_OR_RETURN(const double together, all());
    if (!warm) {  // every rank decides alike
      warm = true;
      std::vector<double> longest = {std::max(*alone, together)};
      SumHost(world, longest);
      if (longest[0] < kWarmSeconds * world.size()) continue;
    }
    pairs.one.push_back(*alone);
    pairs.all.push_back(together);
  }
  return absl::OkStatus();
}

}  // namespace toroid
