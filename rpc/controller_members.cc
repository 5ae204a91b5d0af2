// Which pods of a job take part: the views that its worlds are told and, with policy `continue`,
// those that go away and come back while the others train.
//
// A pod of a job is away from the moment that the others are told a view without it until a launch
// of it, under the same number and a higher epoch, has done a step. That launch begins once nobody
// can doubt that the one before has ended; it is told of to the others as soon as it listens, and
// they let it in (parallel/pod_exchange.h). One that fails before its first step is followed by the
// next one, a back-off later, as long as the job may be restarted.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

// A launch that others cannot hear, and that has not said a word to its controller for so long
// since, has come to a stop on its way to its first step.
constexpr absl::Duration kSilentWhileJoining = absl::Seconds(5);
// Of a pod that was not lost (it had no place yet, or drained) so many launches are no restarts.
constexpr int64_t kLaunchesToJoin = 3;

// slow_s: the others waited so long for it; 0: they do not hear it.
absl::Status WhyLeftOut(const std::string& pod, double slow_s) {
  const bool slow = slow_s > 0;
  return MakeError(
      absl::StatusCode::kUnavailable,
      slow ? absl::StrFormat("pod %s is slow: the others waited %.1f s for it", pod, slow_s)
           : absl::StrCat("pod ", pod, " says nothing to the others, which wait for it"),
      {slow ? "POD_SLOW" : "POD_SILENT", {{"pod", pod}}, {}});
}

}  // namespace

// Once all pods of the job listen: a view of them, to each; then at each change.
void Controller::TellPods(Job& job) {
  std::vector<World*> worlds;
  PodTable table;
  size_t joining = 0;
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id) continue;
    // After a restart of this controller: the others may train with it already, and a view without
    // it, followed by one with it, would have them lack what they never got.
    if (world->adopted && world->joins && !world->ending() && world->listens.empty()) return;
    if (world->listens.empty()) continue;
    if (!world->takes_part() && !world->returns()) continue;
    worlds.push_back(world);
    joining += world->joining();
    table.pods.push_back({world->pod, world->id.epoch, world->listens});
  }
  const size_t known = worlds.size() - joining + job.away.size();
  if (static_cast<int64_t>(known) + job.answered < job.pods()) return;
  table.view = view_ = store_->BumpView().value_or(view_ + 1);
  job.table = table;
  for (World* world : worlds) {
    if (world->link.pods) world->link.pods(table);
  }
}

// The first of its pods that train.
bool Controller::SpeaksForJob(const World& world) const {
  const Job& job = *jobs_.at(world.job);
  for (const auto& [name, pod] : pods_) {
    const World* other = pod->world.get();
    if (other != nullptr && other->job == world.job && other->pod < world.pod &&
        job.away.count(other->pod) == 0) {
      return false;
    }
  }
  return job.away.count(world.pod) == 0;
}

// Whether the job's other pods train on when that one goes away. Not before each of them has done a
// step: until then they wait for all.
bool Controller::OthersGoOn(const Job& job, const World& without) const {
  if (!job.goes_on() || job.failed || job.ending) return false;
  int64_t others = 0;
  for (const auto& [name, pod] : pods_) {
    const World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id || world == &without) continue;
    if (!world->takes_part()) continue;
    if (!world->stepped) return false;
    ++others;
  }
  return others + job.answered > 0;
}

std::string NamesOf(const std::vector<JobPod>& pods) {
  std::vector<std::string> names;
  for (const JobPod& pod : pods) {
    if (!pod.pod.empty() && pod.state != "WAITING") names.push_back(pod.pod);
  }
  return absl::StrJoin(names, ",");
}

std::string Controller::Job::WhoIsAway() const {
  std::vector<std::string> whys;
  bool stays = false;
  size_t never = 0;  // had they a place
  for (const auto& [pod, lost] : away) {
    stays = stays || !MayReturn(lost);
    if (lost.pod.empty()) {
      ++never;
    } else {
      whys.push_back(absl::StrCat("pod ", pod, " on ", lost.pod, ": ", lost.why));
    }
  }
  std::string text =
      never == 0 ? ""
                 : absl::StrCat(never, " of ", pods(), " pods had no place when the others began: ",
                                never == 1 ? "it joins" : "they join", " once an agent has room");
  if (whys.empty()) return text;
  if (never > 0) absl::StrAppend(&text, "; ");
  return absl::StrCat(
      text, whys.size(), " of ", pods(),
      " pods lost, the others go on: ", absl::StrJoin(whys, "; "),
      stays ? absl::StrCat("; it does not return: max_restarts is ", spec.max_restarts) : "");
}

// The others are told a view without it; nothing is launched until its end is known. Destroys `job`
// if that was the last one that all others waited for.
void Controller::GoOnWithout(Job& job, World& world, const std::string& pod,
                             const absl::Status& why) {
  world.left_out = true;
  if (!world.ending()) {
    world.state = World::State::kExiting;
    world.deadline = Now() + times_.exit;
  }
  Job::Away& away = job.away[world.pod];
  away.why = std::string(why.message());
  away.pod = pod;
  away.unconfirmed = false;
  away.earliest = absl::InfiniteFuture();
  if (static_cast<size_t>(world.pod) < job.status.pods.size()) {
    job.status.pods[world.pod].state = "LOST";
  }
  if (job.answered + static_cast<int64_t>(job.away.size()) == job.pods()) {
    return Succeed(job, "PodLost", job.WhoIsAway());
  }
  (void)SetState(job, JobState::kRunning, "PodLost", job.WhoIsAway());
  TellPods(job);
}

// The world is ending, or is to be ended: true if the job's others go on without it.
bool Controller::LeaveOut(World& world, const absl::Status& why) {
  const auto found = jobs_.find(world.job);
  if (found == jobs_.end() || world.request == 0 || world.is_pool) return false;
  if (world.left_out) return true;
  if (!OthersGoOn(*found->second, world)) return false;
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() != &world) continue;
    GoOnWithout(*found->second, world, name,
                why.ok() ? absl::UnavailableError("its world ends") : why);
    break;
  }
  return true;
}

// What a world of a job answered its task with concerns that world alone, and the others go on.
bool Controller::LosesPod(World& world, const absl::Status& answer) {
  if (world.left_out) return true;
  if (answer.ok() || !(world.joining() || absl::IsUnavailable(answer))) return false;
  return LeaveOut(world, answer);
}

// True: the others go on. Its next launch may be scheduled from `earliest` on. May destroy `job`.
bool Controller::PodOfJobEnded(Job& job, World& world, const std::string& pod,
                               const absl::Status& why, bool confirmed, absl::Time earliest) {
  if (job.goes_on() && job.ending && (world.left_out || world.joining())) {
    for (const auto& [name, other] : pods_) {  // which may still save
      const World* left = other->world.get();
      if (left != nullptr && left->job == job.status.id && !left->ending()) return true;
    }
  }
  if (!job.goes_on() || job.failed || job.ending) return false;
  if (!world.left_out) {
    if (!OthersGoOn(job, world)) return false;
    const std::string id = job.status.id;
    GoOnWithout(job, world, pod, why);
    if (jobs_.count(id) == 0) return true;
  }
  Job::Away& away = job.away[world.pod];
  const int64_t failures = std::min<int64_t>(away.launches, 7);
  const absl::Duration backoff =
      failures == 0 ? absl::ZeroDuration()
                    : std::min(absl::Seconds(60), times_.backoff * (int64_t{1} << (failures - 1)));
  away.unconfirmed = !confirmed;
  away.earliest = std::max(earliest, Now() + backoff);
  return true;
}

// Of the job, those of its pods that could be launched now, were there room.
std::vector<int64_t> Controller::Returning(const Job& job) const {
  std::vector<int64_t> out;
  if (!job.goes_on() || job.failed || job.ending || job.status.state != JobState::kRunning) {
    return out;
  }
  // Those that begin are told a view of all that do, and of nobody else, until they have met.
  for (const auto& [name, pod] : pods_) {
    const World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id) continue;
    if (world->takes_part() && !world->stepped) return out;
  }
  for (const auto& [pod, away] : job.away) {
    if (away.earliest <= Now() && job.MayReturn(away)) out.push_back(pod);
  }
  return out;
}

absl::Status Controller::StartReturn(Job& job, int64_t number, Pod& pod) {
  Job::Away& away = job.away.at(number);
  if (!job.MayReturn(away)) return absl::OkStatus();  // another one took the last restart
  Placement placement = job.spec.placement;
  placement.mesh = job.mesh_of(number);
  placement.pod_meshes.clear();
  auto world = NewWorld(pod, placement, job.status.id, absl::ZeroDuration());
  if (!world.ok()) {
    away.earliest = Now() + times_.backoff;
    return world.status();
  }
  (*world)->pod = number;
  (*world)->joins = true;
  const std::string& name = pod.registration.pod;
  JobPod& part = job.status.pods[number];
  // What it told of its weights in its last launch was of those; checkpoints stay on their host.
  job.told_by_pods.resize(job.status.pods.size());
  job.told_by_pods[number].hashes.clear();
  if (part.pod != name) job.told_by_pods[number].checkpoints.clear();
  part.pod = name;
  part.mesh = (*world)->placement.load.mesh;
  part.epoch = job.status.epoch = (*world)->id.epoch;
  part.progress.reset();
  part.state = "JOINING";
  job.status.pod = NamesOf(job.status.pods);
  job.Holds(number, name);
  job.status.restarts += away.counts;
  away.counts = ++away.launches >= kLaunchesToJoin || away.counts;
  away.earliest = absl::InfiniteFuture();
  Launch(pod, *std::move(world));
  Assign(*pod.world, NewRequest(job, number));
  if (away.pod.empty()) {
    return SetState(
        job, JobState::kRunning, "PodJoins",
        absl::StrCat("pod ", number, " is launched on ", name, ", to join those that train"));
  }
  return SetState(job, JobState::kRunning, "PodReturns",
                  absl::StrCat("pod ", number, " is launched again on ", name,
                               ", the others go on: it was lost: ", away.why));
}

// A first step: from here on others wait for it.
void Controller::Stepped(World& world) {
  if (std::exchange(world.stepped, true)) return;
  const auto found = jobs_.find(world.job);
  if (found == jobs_.end()) return;
  Job& job = *found->second;
  if (static_cast<size_t>(world.pod) >= job.status.pods.size()) return;
  job.status.pods[world.pod].state = "TRAINING";
  const auto away = job.away.find(world.pod);
  const bool again = away != job.away.end() && !away->second.pod.empty();
  if (!world.joins || job.away.erase(world.pod) == 0) {
    // A controller that is started anew knows who trains.
    if (std::all_of(job.status.pods.begin(), job.status.pods.end(),
                    [](const JobPod& pod) { return pod.state != "STARTING"; })) {
      (void)SetState(job, job.status.state, job.status.reason, job.status.message);
    }
    return;
  }
  if (job.away.empty()) {
    (void)SetState(job, JobState::kRunning, again ? "PodReturned" : "PodJoined",
                   absl::StrCat("pod ", world.pod, again ? " trains again" : " has joined",
                                ": all ", job.pods(), " train"));
  } else {
    (void)SetState(job, JobState::kRunning, "PodLost", job.WhoIsAway());
  }
}

// The first pod that is told of decides: one that is left out is not listened to.
void Controller::PodSilent(const World& teller, const SilentAnswer& silent) {
  if (!teller.takes_part() || !teller.stepped) return;
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->job != teller.job || world->pod != silent.pod ||
        world->id.epoch != silent.epoch) {
      continue;
    }
    // One that is on its way to its first step has the time that it needs while it is heard.
    if (silent.slow_s > 0 && !world->stepped) continue;
    world->silent = std::min(world->silent, Now());
    world->slow_s = silent.slow_s;
    CheckPodOfJob(*pod);
  }
}

// Leaves out a world that is silent or slow, or whose pod drains, and ends it.
void Controller::CheckPodOfJob(Pod& pod) {
  World& world = *pod.world;
  const auto job = jobs_.find(world.job);
  if (job == jobs_.end() || world.ending() || world.request == 0) return;
  const absl::Time silent = world.stepped     ? world.silent
                            : world.joining() ? world.silent + kSilentWhileJoining
                                              : absl::InfiniteFuture();
  const std::string& name = pod.registration.pod;
  if (silent <= Now()) {
    if (LeaveOut(world, WhyLeftOut(name, world.slow_s))) {
      StopWorld(world, absl::StrCat(world.slow_s > 0 ? "it is slow" : "it is silent",
                                    ": the others go on without it"));
    }
  } else if (pod.draining) {
    const int64_t number = world.pod;
    const std::string id = world.job;
    if (!LeaveOut(world, absl::UnavailableError(absl::StrCat("pod ", name, " drains")))) return;
    // Nothing has failed.
    if (jobs_.count(id) > 0) jobs_.at(id)->away.at(number).counts = false;
    StopWorld(world, "its pod drains: the others go on without it");
  }
}

// The job's pod `pod` has done its part. Destroys `job` if all others have, or are away.
void Controller::PodDone(Job& job, int64_t pod) {
  job.away.erase(pod);
  if (static_cast<size_t>(pod) < job.status.pods.size()) job.status.pods[pod].state = "DONE";
  if (++job.answered + static_cast<int64_t>(job.away.size()) == job.pods()) {
    return Succeed(job, "", "");
  }
  // A controller that is started anew must not take it for lost.
  (void)SetState(job, job.status.state, job.status.reason, job.status.message);
}

// Destroys `job`; those that were about to join come too late.
void Controller::Succeed(Job& job, const std::string& reason, const std::string& message) {
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id || world->ending()) continue;
    if (world->request != 0) StopWorld(*world, "its job has ended");
  }
  (void)SetState(job, JobState::kSucceeded, reason, message);
}

}  // namespace toroid
