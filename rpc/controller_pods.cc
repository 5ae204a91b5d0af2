// Pods: what their agents say, and what clients ask about them.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/version.h"
#include "rpc/controller.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

constexpr size_t kMaxPods = 1000;

bool IsPodName(const std::string& name) {
  return !name.empty() && name.size() <= 63 && name[0] != '.' &&
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
             std::string::npos;
}

}  // namespace

absl::StatusOr<uint64_t> Controller::AgentConnected(const PodRegistration& registration,
                                                    AgentLink link) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (registration.version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("agent of pod ", registration.pod, " is version ", registration.version,
                     ", controller is ", kVersion, ": use one version"));
  }
  if (!IsPodName(registration.pod)) {
    return BadField("pod", absl::StrCat("'", registration.pod,
                                        "' is no name: 1 to 63 letters, digits, '-', '_' or '.'"));
  }
  if (registration.slots < 1 || registration.slots > 1 << 20) {
    return BadField("slots", absl::StrCat(registration.slots, " is not 1 to 1048576"));
  }
  std::unique_ptr<Pod>& pod = pods_[registration.pod];
  if (pod == nullptr) {
    if (pods_.size() > kMaxPods) {
      pods_.erase(registration.pod);
      return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxPods, " pods"));
    }
    pod = std::make_unique<Pod>();
  }
  if (pod->session != 0 && pod->registration.incarnation != registration.incarnation) {
    return absl::AlreadyExistsError(absl::StrCat("pod name is taken: ", registration.pod,
                                                 ": another agent holds it: give --pod another"));
  }
  pod->registration = registration;
  pod->session = ++last_id_;
  pod->link = std::move(link);
  pod->lost = false;
  pod->last_seen = Now();
  pod->foreign.clear();
  leases_.Renew(registration.pod, Now());
  view_ = store_->BumpView().value_or(view_ + 1);
  bool ours = false;
  for (const HeldWorld& running : registration.running) {
    if ((pod->world != nullptr && pod->world->id == running.id) || Adopt(*pod, running)) {
      ours = true;
      if (pod->world->credential.empty()) pod->world->credential = running.credential;
      StopAgain(*pod);
    } else {
      pod->foreign.push_back(running.id);
      pod->link.stop(running.id, "unknown to the controller");
    }
  }
  if (pod->world != nullptr && !ours) {
    EndWorld(*pod,
             MakeError(absl::StatusCode::kUnavailable,
                       absl::StrCat("the agent of pod ", registration.pod,
                                    " came back without the world"),
                       {"AGENT_LOST", {{"pod", registration.pod}}, {}}),
             WorldExit(), /*confirmed=*/true);
  }
  for (const auto& [id, job] : jobs_) {  // what is not running there now has ended
    if (job->awaited != absl::InfinitePast() && job->status.pod == registration.pod) {
      StopAwaiting(*job, "came back without the world", Now() + times_.backoff);
    }
    for (auto& [number, away] : job->away) {
      if (away.unconfirmed && away.pod == registration.pod) {
        away.unconfirmed = false;
        away.earliest = std::min(away.earliest, Now());
      }
    }
    if (job->unconfirmed_pod != registration.pod) continue;
    job->unconfirmed_pod.clear();
    job->not_before = std::min(job->not_before, Now() + times_.backoff);
  }
  return pod->session;
}

// The agent was away as its world was to be stopped, or the order was lost with its stream. It has
// the rest of the time, and what it takes to end a world at least.
void Controller::StopAgain(Pod& pod) {
  World& world = *pod.world;
  if (world.state != World::State::kStopping) return;
  world.deadline = std::max(world.deadline, Now() + times_.exit);
  pod.link.stop(world.id, "it was to end while its agent was away");
}

void Controller::AgentHeartbeat(uint64_t session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, pod] : pods_) {
    if (pod->session != session || session == 0) continue;
    pod->last_seen = Now();
    leases_.Renew(name, Now());
  }
}

void Controller::AgentGone(uint64_t session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, pod] : pods_) {
    if (pod->session != session || session == 0) continue;
    pod->session = 0;
    pod->link = AgentLink();
    // While rank 0's stream lives the agent may only be dialling again: the lease decides.
    if (pod->world == nullptr || pod->world->worker != 0 || pod->world->resumes) continue;
    EndWorld(
        *pod,
        MakeError(absl::StatusCode::kUnavailable, absl::StrCat("pod ", name, " lost its agent"),
                  {"AGENT_LOST", {{"pod", name}}, {}}),
        WorldExit(), /*confirmed=*/false);
  }
}

// The pod that it is on.
std::string Controller::NameOf(const World& world) const {
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() == &world) return name;
  }
  return "";
}

// The world that a message of this agent is about; null if the message is stale.
Controller::World* Controller::WorldOf(uint64_t agent_session, const WorldId& id) {
  for (const auto& [name, pod] : pods_) {
    if (pod->session != agent_session || agent_session == 0) continue;
    if (pod->world != nullptr && pod->world->id == id) return pod->world.get();
    auto& foreign = pod->foreign;
    if (std::find(foreign.begin(), foreign.end(), id) != foreign.end()) return nullptr;
  }
  ++stale_dropped_;
  return nullptr;
}

void Controller::LaunchRefused(uint64_t session, const WorldId& id, const absl::Status& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  World* world = WorldOf(session, id);
  if (world == nullptr) return;
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() != world) continue;
    EndWorld(*pod, why, WorldExit(), /*confirmed=*/true);
    break;
  }
  ScheduleWork();
}

void Controller::WorldEnded(uint64_t session, const WorldId& id, const WorldExit& exit) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, pod] : pods_) {
    if (pod->session != session || session == 0) continue;
    std::erase(pod->foreign, id);
  }
  World* world = WorldOf(session, id);
  if (world != nullptr) {
    for (const auto& [name, pod] : pods_) {
      if (pod->world.get() != world) continue;
      EndWorld(*pod, world->failure, exit, /*confirmed=*/true);
      break;
    }
  }
  ScheduleWork();
}

void Controller::RankEnded(uint64_t session, const WorldId& id, int rank, const std::string& host) {
  const std::lock_guard<std::mutex> lock(mutex_);
  World* world = WorldOf(session, id);
  if (world == nullptr) return;
  LeaveOut(*world, MakeError(absl::StatusCode::kUnavailable,
                             absl::StrCat("rank ", rank, " on ", host, " has ended"),
                             {"RANK_FAILED", {{"rank", absl::StrCat(rank)}, {"host", host}}, {}}));
}

void Controller::LogLines(uint64_t session, const WorldId& id, const std::vector<LogLine>& lines) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const World* world = WorldOf(session, id);
  if (world == nullptr) return;
  if (world->is_pool) LogOfPool(*world, lines);
  logs_->Append(id.job, lines);
  for (const auto& [number, subscription] : subscriptions_) {
    if (subscription->job == id.job) subscription->sink.more_log();
  }
}

PodStatus Controller::Describe(const Pod& pod) const {
  PodStatus status;
  status.name = pod.registration.pod;
  status.host = pod.registration.host;
  status.slots = pod.registration.slots;
  status.last_seen = pod.last_seen;
  const World* world = pod.world.get();
  const bool busy = world != nullptr && (!world->job.empty() || world->request != 0 ||
                                         world->state != World::State::kIdle);
  status.state = pod.session == 0 ? "LOST" : pod.draining ? "DRAINING" : busy ? "BUSY" : "READY";
  if (world != nullptr) {
    status.job = world->job;
    status.epoch = world->id.epoch;
    if (world->model.has_value()) status.model = world->placement.load.model;
  }
  return status;
}

std::vector<PodStatus> Controller::ListPods() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<PodStatus> out;
  for (const auto& [name, pod] : pods_) out.push_back(Describe(*pod));
  return out;
}

absl::StatusOr<PodStatus> Controller::DrainPod(const std::string& name, bool drain) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = pods_.find(name);
  if (it == pods_.end()) {
    return MakeError(absl::StatusCode::kNotFound,
                     absl::StrCat("no such pod: ", name, ": see toroid pod list"),
                     {"NO_POD", {{"pod", name}}, {}});
  }
  // A controller that is started anew must know.
  const absl::Status stored = store_->SetDraining(name, drain);
  if (!stored.ok()) return stored;
  it->second->draining = drain;
  if (it->second->world != nullptr) CheckWorld(*it->second);
  ScheduleWork();
  return Describe(*it->second);
}

}  // namespace toroid
