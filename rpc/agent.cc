#include "rpc/agent.h"

#include <csignal>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

constexpr absl::Duration kTerminateGrace = absl::Seconds(2);
constexpr absl::Duration kKillRepeat = absl::Seconds(1);

}  // namespace

void Agent::Launch(const LaunchOrder& order) {
  uint64_t& last = last_epoch_[order.world.job];
  if (order.world.epoch <= last) {
    ++stale_dropped_;
    return;
  }
  last = order.world.epoch;
  if (shutting_down_ || world_.has_value()) {
    actions_.report({order.world, absl::Status(absl::UnavailableError(
                                      shutting_down_ ? "the agent shuts down"
                                                     : absl::StrCat("the pod still runs ",
                                                                    world_->order.world.job)))});
    return;
  }
  const absl::StatusOr<int> pid = actions_.start(order);
  if (!pid.ok()) {
    actions_.report({order.world, pid.status()});
    return;
  }
  world_ = World{order, *pid};
}

void Agent::Stop(const WorldId& world) {
  if (world_.has_value() && world_->order.world == world) {
    Terminate();
  } else {
    ++stale_dropped_;
  }
}

void Agent::Terminate() {
  if (!world_.has_value() || world_->terminating) return;
  world_->terminating = true;
  world_->kill_at = now_() + kTerminateGrace;
  actions_.signal(world_->pid, SIGTERM);
}

void Agent::RenewLease(absl::Duration lease) { lease_end_ = now_() + lease; }

void Agent::ChildEnded(const WorldExit& exit) {
  if (!world_.has_value()) return;
  const WorldId world = world_->order.world;
  world_.reset();
  actions_.report({world, exit});
}

void Agent::Log(std::vector<LogLine> lines) {
  if (world_.has_value()) actions_.report({world_->order.world, std::move(lines)});
}

void Agent::RankEnded(const RankEnding& rank) {
  if (world_.has_value()) actions_.report({world_->order.world, rank});
}

void Agent::Shutdown() {
  shutting_down_ = true;
  Terminate();
}

void Agent::Tick() {
  if (!world_.has_value()) return;
  if (lease_end_ <= now_()) Terminate();
  if (world_->kill_at <= now_()) {
    actions_.signal(world_->pid, SIGKILL);
    world_->kill_at = now_() + kKillRepeat;
  }
}

std::vector<HeldWorld> Agent::running() const {
  if (!world_.has_value()) return {};
  return {{world_->order.world, world_->order.credential}};
}

}  // namespace toroid
