// Agent: one pod's share of the control plane. Plain logic with an injected clock.
//
// It holds at most one world at a time: launched on the controller's order, ended on its order,
// when the controller has not been heard of for a lease, or when the agent shuts down: SIGTERM to
// mpirun's process group, SIGKILL two seconds later. Not thread-safe: all calls from the one thread
// that forks.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/control.h"

namespace toroid {

// A rank's process is no more; its world is still to end.
struct RankEnding {
  int rank = -1;
  std::string host;
};

struct AgentReport {
  WorldId world;
  std::variant<absl::Status /*launch refused*/, WorldExit /*ended*/, std::vector<LogLine>,
               RankEnding>
      body;
};

class Agent {
 public:
  struct Actions {
    // Starts mpirun; its process id, which is also that of its process group.
    std::function<absl::StatusOr<int>(const LaunchOrder&)> start;
    std::function<void(int pid, int signal)> signal;  // to the process group
    std::function<void(const AgentReport&)> report;
  };

  Agent(Actions actions, std::function<absl::Time()> now)
      : actions_(std::move(actions)), now_(std::move(now)) {}

  // An epoch that is not above the last one of that job is dropped and counted.
  void Launch(const LaunchOrder& order);
  void Stop(const WorldId& world);
  // The controller was heard of; the lease begins anew.
  void RenewLease(absl::Duration lease);
  // mpirun has been reaped; `exit` says why.
  void ChildEnded(const WorldExit& exit);
  void Log(std::vector<LogLine> lines);
  void RankEnded(const RankEnding& rank);
  // Ends the world; no launch is taken any more.
  void Shutdown();
  void Tick();

  // The world that runs, if any, for the next registration.
  std::vector<HeldWorld> running() const;
  int pid() const { return world_.has_value() ? world_->pid : 0; }
  int ranks() const { return world_.has_value() ? world_->order.ranks : 0; }
  uint64_t stale_dropped() const { return stale_dropped_; }

 private:
  struct World {
    LaunchOrder order;
    int pid = 0;
    bool terminating = false;
    absl::Time kill_at = absl::InfiniteFuture();
  };
  void Terminate();

  const Actions actions_;
  const std::function<absl::Time()> now_;
  std::optional<World> world_;
  absl::Time lease_end_ = absl::InfiniteFuture();
  std::map<std::string, uint64_t> last_epoch_;  // by job
  bool shutting_down_ = false;
  uint64_t stale_dropped_ = 0;
};

}  // namespace toroid
