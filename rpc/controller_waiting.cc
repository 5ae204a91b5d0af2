// Why a job waits, and for which pods: one that goes on from a checkpoint for those that hold it.
//
// Its newest checkpoint lies on the host of the agent whose world told of it; others see it if pods
// share a directory, which nobody can know before a launch. So the job waits for a holder that is
// there, or away for a moment; while it drains or is lost others are tried, and if one of them
// answers that it has not got the checkpoint the job goes back to wait for its holders alone.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

// Explanations of why a job waits that become events.
constexpr size_t kMostExplained = 20;

std::string CheckpointText(const JobCheckpoint& checkpoint) {
  return absl::StrCat("the checkpoint of step ", checkpoint.step, " (", checkpoint.path, ")");
}

std::string PodsText(const std::vector<std::string>& names) {
  return absl::StrCat(names.size() == 1 ? "pod " : "pods ", absl::StrJoin(names, ", "));
}

}  // namespace

enum class Controller::Holding {
  kThere,
  kAway,    // for a moment: its lease, or that of before a restart of this controller, still runs
  kDrains,  // its agent may be there or not
  kLost,
};

Controller::Holding Controller::HoldingOf(const std::string& agent) const {
  const auto found = pods_.find(agent);
  if (found != pods_.end() && found->second->draining) return Holding::kDrains;
  if (found != pods_.end() && found->second->session != 0) return Holding::kThere;
  const absl::Time back = started_ + times_.lease + times_.lease_margin;
  return std::max(leases_.Deadline(agent), back) > Now() ? Holding::kAway : Holding::kLost;
}

// The agents that hold what the job goes on from; none: it has committed nothing. With policy
// `halt` all pods begin, with a step that all have: each is where it was.
std::vector<std::string> Controller::HoldersOf(const Job& job) const {
  if (!job.trains() || !job.status.checkpoint) return {};
  const JobCheckpoint& newest = *job.status.checkpoint;
  std::set<std::string> names;
  if (job.pods() == 1) names.insert(newest.pod.empty() ? job.status.pod : newest.pod);
  for (const JobPod& part : job.status.pods) {
    if (!part.checkpoint || (job.goes_on() && part.checkpoint->step < newest.step)) continue;
    names.insert(part.checkpoint->pod.empty() ? part.pod : part.checkpoint->pod);
  }
  for (const std::string& name : job.without) names.erase(name);
  names.erase("");
  return {names.begin(), names.end()};
}

// Of those, the ones without which it does not begin. None: any pods will do.
std::vector<std::string> Controller::HoldersToAwait(const Job& job) const {
  std::vector<std::string> holders = HoldersOf(job);
  if (job.holders_alone) return holders;
  std::erase_if(holders, [this](const std::string& name) {
    const Holding holding = HoldingOf(name);
    return holding == Holding::kDrains || holding == Holding::kLost;
  });
  return holders;
}

// With policy `continue` it begins on those that hold its newest checkpoint, and no others: who has
// none, or an older one, joins and copies the state. Begun with, such a pod would take the job
// back, or end it for want of a step that all have. Where that cannot be, for want of those whose
// meshes are their own, or of holders, it begins on all of its pods.
void Controller::AskWhereItLies(const Job& job, Waiting& waiting) const {
  if (!job.trains() || !job.status.checkpoint) return;
  std::vector<std::string> holders = HoldersToAwait(job);
  if (job.pods() == 1) {
    if (!holders.empty() && waiting.pod.empty()) waiting.pod = holders[0];
    return;
  }
  const PodMeshes& named = job.spec.placement.pod_meshes;
  const bool alone =
      job.goes_on() && static_cast<int64_t>(holders.size()) >= job.least_pods() &&
      std::all_of(named.begin(), named.end(), [&holders](const auto& mesh) {
        return std::find(holders.begin(), holders.end(), mesh.first) != holders.end();
      });
  if (alone) {
    waiting.among = std::move(holders);
    return;
  }
  waiting.least = job.pods();
  waiting.must = std::move(holders);
}

std::string Controller::WhatAgentDoes(const Job& job, const std::string& agent) const {
  switch (HoldingOf(agent)) {
    case Holding::kDrains:
      return absl::StrCat(agent, " drains: toroid pod drain ", agent, " --undo");
    case Holding::kAway:
      return absl::StrCat(agent, "'s agent is away for a moment");
    case Holding::kLost:
      return absl::StrCat(agent, "'s agent is lost: start it again");
    case Holding::kThere:
      break;
  }
  const Pod& pod = *pods_.at(agent);
  const Placement& placement = job.spec.placement;
  const absl::Status fits =
      ResolveMesh(MeshOn(agent, placement.mesh, placement.pod_meshes), pod.registration.slots)
          .status();
  if (!fits.ok()) return absl::StrCat(agent, " has no room: ", fits.message());
  if (!pod.foreign.empty()) return absl::StrCat(agent, " ends a world of before");
  const World* world = pod.world.get();
  if (world == nullptr) return "";
  if (!world->job.empty()) return absl::StrCat(agent, " runs job ", world->job);
  if (world->request != 0) return absl::StrCat(agent, " answers a request");
  return absl::StrCat(agent, " ends a world that it kept");
}

// What keeps those that hold its checkpoint from it; empty: nothing does, or it waits for others.
std::string Controller::WhatHoldersDo(const Job& job) const {
  const std::vector<std::string> holders = HoldersToAwait(job);
  Waiting asked;
  AskWhereItLies(job, asked);
  std::vector<std::string> kept;
  for (const std::string& name : holders) {
    std::string does = WhatAgentDoes(job, name);
    if (!does.empty()) kept.push_back(std::move(does));
  }
  // Of several any that has it will do.
  const bool any = !asked.among.empty();
  if (kept.empty() ||
      (any && static_cast<int64_t>(holders.size() - kept.size()) >= job.least_pods())) {
    return "";
  }
  return absl::StrCat("the job waits for ", PodsText(holders), ", which ",
                      holders.size() == 1 ? "has " : "have ",
                      CheckpointText(*job.status.checkpoint), ": ", absl::StrJoin(kept, ", "));
}

// What keeps pods of a job on several from it, if enough of them are there.
std::string Controller::WhatOthersDo(const Job& job) const {
  std::vector<std::string> busy;
  int64_t free = 0;
  for (const auto& [name, pod] : pods_) {
    const Placement& placement = job.spec.placement;
    const bool fits =
        ResolveMesh(MeshOn(name, placement.mesh, placement.pod_meshes), pod->registration.slots)
            .ok();
    if (pod->session == 0 || !fits) continue;
    const World* world = pod->world.get();
    if (pod->draining) {
      busy.push_back(absl::StrCat(name, " drains"));
    } else if (world != nullptr && !world->job.empty()) {
      busy.push_back(absl::StrCat(name, " runs job ", world->job));
    } else if (world != nullptr && world->request != 0) {
      busy.push_back(absl::StrCat(name, " answers a request"));
    } else {
      ++free;
    }
  }
  if (free >= job.least_pods() || busy.empty()) return "";
  return absl::StrCat("the job needs ", job.least_pods(), " pods, ", free,
                      free == 1 ? " is" : " are", " free: ", absl::StrJoin(busy, ", "));
}

// A job that waits says why: for those that hold its checkpoint, or since no live pod can ever take
// it; on several pods, also who keeps it. Pods come and go, and are free and busy, for as long as
// it waits: of a queued job an event that is kept says an explanation once, and a few at most;
// beyond them, and of one that is to go on, those that watch are told, once a second.
void Controller::ExplainWaiting(Job& job) {
  const bool queued = job.status.state == JobState::kQueued;
  if (std::exchange(job.said_by, job.sequence) != job.sequence) job.said = job.status.message;
  std::string message = WhatHoldersDo(job), reason = message.empty() ? "" : "CheckpointAwaited";
  if (message.empty()) {
    const absl::Status why = CannotServe(job.spec.placement, job.least_pods());
    message = std::string(why.message());
    reason = CamelCase(GetErrorInfo(why).reason);
    if (why.ok() && job.pods() > 1) {
      message = WhatOthersDo(job);
      reason = message.empty() ? "" : "PodsBusy";
    }
  }
  if (!queued) {
    reason = job.status.reason;  // why it is to go on stays what it was
    message = absl::StrCat(job.said, job.said.empty() || message.empty() ? "" : "; ", message);
  }
  const absl::Time now = Now();
  if (message != job.status.message) {
    job.untold = true;
    if (queued && job.explained.size() < kMostExplained && job.explained.insert(message).second) {
      (void)SetState(job, JobState::kQueued, reason, message);
      job.untold = false;
      job.told = now;
    }
    job.status.reason = reason;
    job.status.message = message;
  }
  if (!job.untold || now < job.told + times_.progress) return;
  job.untold = false;
  job.told = now;
  Publish(job, {job.sequence, now, job.status});
}

// A launch has answered that it lacks the newest checkpoint; all its worlds have ended. May destroy
// `job`.
void Controller::GoToHolders(Job& job, const std::string& why, absl::Time earliest) {
  std::set<std::string> launched;
  if (job.pods() == 1) launched.insert(job.status.pod);
  for (const JobPod& part : job.status.pods) {
    if (part.state != "WAITING") launched.insert(part.pod);
  }
  const std::vector<std::string> told = HoldersOf(job);
  std::vector<std::string> left = told;
  std::erase_if(left, [&launched](const std::string& name) { return launched.count(name) > 0; });
  if (left.empty()) {
    (void)SetState(job, JobState::kFailed, CamelCase(kCheckpointLostReason),
                   told.empty()
                       ? why
                       : absl::StrCat(PodsText(told), told.size() == 1 ? " has told" : " have told",
                                      " of ", CheckpointText(*job.status.checkpoint), " and ",
                                      told.size() == 1 ? "lacks" : "lack", " it now: ", why));
    return;
  }
  // With policy `halt` one that lacks it may be any of them.
  if (job.goes_on()) job.without.insert(launched.begin(), launched.end());
  job.holders_alone = true;
  job.given_up = absl::InfiniteFuture();
  job.not_before = std::max(earliest, Now() + times_.backoff);
  (void)SetState(job, JobState::kRestarting, CamelCase(kCheckpointLostReason), why);
}

// Those that alone hold its checkpoint have been lost for so long that it has failed, and is
// destroyed.
bool Controller::HoldersAreGone(Job& job) {
  const std::vector<std::string> holders = HoldersOf(job);
  const auto lost = [this](const std::string& name) { return HoldingOf(name) == Holding::kLost; };
  const bool gone = job.holders_alone && !holders.empty() &&
                    (job.goes_on() ? std::all_of(holders.begin(), holders.end(), lost)
                                   : std::any_of(holders.begin(), holders.end(), lost));
  if (!gone) job.given_up = absl::InfiniteFuture();
  if (!gone) return false;
  job.given_up = std::min(job.given_up, Now() + times_.holder);
  if (Now() < job.given_up) return false;
  (void)SetState(job, JobState::kFailed, CamelCase(kCheckpointLostReason),
                 absl::StrCat(PodsText(holders), " alone ", holders.size() == 1 ? "has " : "have ",
                              CheckpointText(*job.status.checkpoint), " and did not come back for ",
                              absl::FormatDuration(times_.holder),
                              ": start the agent again, or copy the checkpoint to another host, "
                              "and submit the job again: it goes on from there"));
  return true;
}

}  // namespace toroid
