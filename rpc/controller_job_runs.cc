// The controller's jobs on their way: when they begin, what they tell, how they end or begin again.
#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

// A job that trains fails if so many restarts brought no checkpoint of a later step.
constexpr int64_t kRestartsWithoutCheckpoint = 3;

}  // namespace

std::string CamelCase(const std::string& reason) {
  std::string out;
  for (absl::string_view word : absl::StrSplit(reason, '_', absl::SkipEmpty())) {
    absl::StrAppend(&out, word.substr(0, 1), absl::AsciiStrToLower(word.substr(1)));
  }
  return out;
}

// The job's task, for a world: that of its pod `pod`.
Controller::Request& Controller::NewRequest(const Job& job, int64_t pod) {
  auto request = std::make_unique<Request>();
  request->id = ++last_id_;
  std::visit(
      [&request](const auto& task) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(task)>, PoolTask>) {
          request->spec.task = task;
        }
      },
      job.spec.task);
  // One directory for each job of a spec; of a job without a name its id.
  request->output_dir = PodDirectory(
      OutputDirectory(job.spec, job.status.name.empty() ? job.status.id : job.status.name), pod,
      job.pods());
  request->job = job.status.id;
  request->spec.placement = job.spec.placement;
  request->pod = pod;
  Request& task = *request;
  requests_[request->id] = std::move(request);
  return task;
}

// Whether it starts on so many free pods, now: on fewer than it has only a while after the first
// were free.
bool Controller::BeginsWith(Job& job, size_t pods) {
  if (pods == 0) job.gathers_until = absl::InfiniteFuture();
  if (pods == 0 || static_cast<int64_t>(pods) == job.pods()) return pods > 0;
  job.gathers_until = std::min(job.gathers_until, Now() + times_.gather);
  return job.gathers_until <= Now();
}

namespace {

// Which of the job's pods each of these is: the one that it was last; else the first that is not
// taken.
std::vector<int64_t> NumbersOf(const std::vector<std::string>& names,
                               const std::vector<std::string>& holders, int64_t pods) {
  std::vector<int64_t> numbers(names.size(), -1);
  std::set<int64_t> left;
  for (int64_t number = 0; number < pods; ++number) left.insert(number);
  for (size_t i = 0; i < names.size(); ++i) {
    const auto held = std::find(holders.begin(), holders.end(), names[i]);
    if (held == holders.end()) continue;
    numbers[i] = held - holders.begin();
    left.erase(numbers[i]);
  }
  for (int64_t& number : numbers) {
    if (number < 0) number = left.extract(left.begin()).value();
  }
  return numbers;
}

}  // namespace

void Controller::Job::Holds(int64_t pod, const std::string& agent) {
  holders.resize(static_cast<size_t>(pods()));
  std::replace(holders.begin(), holders.end(), agent, std::string());
  holders[static_cast<size_t>(pod)] = agent;
}

// On as many pods as it has, or fewer, all free.
absl::Status Controller::StartJob(Job& job, const std::vector<Pod*>& pods) {
  std::vector<std::string> names;
  for (const Pod* pod : pods) names.push_back(pod->registration.pod);
  const std::vector<int64_t> numbers = NumbersOf(names, job.holders, job.pods());
  std::map<int64_t, std::pair<Pod*, std::unique_ptr<World>>> parts;  // by pod of the job
  for (size_t i = 0; i < pods.size(); ++i) {
    auto world = NewWorld(*pods[i], job.spec.placement, job.status.id, absl::ZeroDuration());
    if (!world.ok()) {
      job.not_before = Now() + times_.backoff;
      return world.status();
    }
    (*world)->pod = numbers[i];
    parts[numbers[i]] = {pods[i], *std::move(world)};
  }
  for (const auto& [number, part] : parts) job.Holds(number, part.first->registration.pod);
  job.status.progress.reset();
  job.status.agreement = {};
  job.told_by_pods.clear();
  job.failed.reset();
  job.answered = 0;
  job.away.clear();
  job.table.reset();
  job.gathers_until = absl::InfiniteFuture();
  const std::vector<JobPod> before = std::exchange(
      job.status.pods,
      std::vector<JobPod>(job.pods() > 1 ? static_cast<size_t>(job.pods()) : 0, JobPod()));
  for (size_t number = 0; number < job.status.pods.size(); ++number) {
    const auto part = parts.find(static_cast<int64_t>(number));
    JobPod& pod = job.status.pods[number];
    if (number < before.size()) pod.checkpoint = before[number].checkpoint;  // it is still there
    if (part == parts.end()) {
      job.away[static_cast<int64_t>(number)].prefers = pod.pod = job.holders[number];
      // The mesh that the pods that begin take it to have (parallel/pod_swap.cc, Meet).
      pod.mesh = parts.rbegin()->second.second->placement.load.mesh;
      pod.state = "WAITING";
      job.away[static_cast<int64_t>(number)].counts = false;
      continue;
    }
    const World& world = *part->second.second;
    pod = {part->second.first->registration.pod,
           world.placement.load.mesh,
           world.id.epoch,
           {},
           std::move(pod.checkpoint),
           "STARTING"};
  }
  const World& first = *parts.begin()->second.second;
  job.status.mesh = first.placement.load.mesh;
  job.status.epoch = first.id.epoch;
  job.status.pod = job.status.pods.empty() ? names[0] : NamesOf(job.status.pods);
  for (auto& [number, part] : parts) {
    auto& [pod, world] = part;
    world->is_pool = job.is_pool();
    Launch(*pod, std::move(world));
    if (job.is_pool()) continue;  // its programs are others'
    Assign(*pod->world, NewRequest(job, number));
  }
  if (job.status.started == absl::InfinitePast()) job.status.started = Now();
  return SetState(job, JobState::kStarting, job.away.empty() ? "" : "FewerPods",
                  job.away.empty() ? "" : job.WhoIsAway());
}

// Soft: an event that is not kept, with the sequence of the last one that is.
void Controller::JobProgressed(Job& job, const World& world, const TaskProgress& progress) {
  PodProgressed(job, world, progress);
  if (!SpeaksForJob(world)) return;
  job.status.progress = progress;
  const absl::Time now = Now();
  if (now < job.told + times_.progress && progress.done < progress.total) return;
  job.told = now;
  Publish(job, {job.sequence, now, job.status});
}

// Of the launch that is present, since it has come by its stream; the store has the last word.
void Controller::JobCommits(const World& world, const std::string& id, uint64_t epoch,
                            JobCheckpoint checkpoint) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) {
    ++stale_dropped_;
    return;
  }
  Job& job = *found->second;
  checkpoint.epoch = epoch;
  checkpoint.pod = NameOf(world);
  PodCommits(job, world, checkpoint);  // epochs of pods are not each other's: the store keeps one
  JobStatus status = job.status;
  const bool later = !status.checkpoint || checkpoint.step > status.checkpoint->step;
  if (later) status.restarts_since_checkpoint = 0;
  status.checkpoint = checkpoint;
  // Of several pods any may tell of the newest: what is stale has not come by a present stream.
  for (const JobPod& pod : status.pods) epoch = std::max(epoch, pod.epoch);
  const absl::Status committed = store_->Commit(
      status.id, {epoch, checkpoint.step, checkpoint.hash}, codec_.encode_status(status));
  if (committed.code() == absl::StatusCode::kFailedPrecondition) ++stale_dropped_;
  if (!committed.ok()) return;
  job.status = std::move(status);
  job.holders_alone = false;
  job.without.clear();
}

// As it was told to. Destroys `job`.
void Controller::EndJob(Job& job) {
  std::string message = job.end_message;
  if (job.end_state == JobState::kFailed && job.status.checkpoint) {
    absl::StrAppend(&message, "; its last checkpoint is ", job.status.checkpoint->path);
  }
  (void)SetState(job, job.end_state, job.end_reason, message);
}

// The world of the job's pod `pod` has answered its task.
void Controller::JobFinished(Job& job, int64_t pod, const absl::StatusOr<RequestResult>& result) {
  if (job.ending) return EndJob(job);
  if (job.failed) return;  // all begin again, and it ends on the way there
  if (!result.ok()) {
    for (const auto& [name, other] : pods_) {  // they would wait for this one
      World* world = other->world.get();
      if (world == nullptr || world->job != job.status.id || world->ending()) continue;
      if (world->state == World::State::kBusy) {
        CancelProgram(*world);
      } else {
        SendExit(*world, "another pod of its job has failed");
      }
    }
    const ErrorInfo info = GetErrorInfo(result.status());
    if (info.reason == kCheckpointLostReason && job.pool.empty()) {
      job.failed = Job::Failure{result.status(), WorldExit(), Now()};
      return;
    }
    std::string message(result.status().message());
    if (info.reason == kCheckpointLostReason && job.status.checkpoint) {  // where its pool runs now
      absl::StrAppend(&message, "; it lies on pod ", job.status.checkpoint->pod);
    }
    (void)SetState(job, JobState::kFailed,
                   info.reason.empty() ? "TaskFailed" : CamelCase(info.reason), message);
    return;
  }
  if (pod == 0 || job.answered == 0) {
    if (const auto* generated = std::get_if<GenerateResult>(&*result))
      job.status.result = *generated;
    if (const auto* scored = std::get_if<ScoreResult>(&*result)) job.status.result = *scored;
    if (const auto* trained = std::get_if<TrainResult>(&*result)) job.status.result = *trained;
    if (const auto* verified = std::get_if<VerifyResult>(&*result)) job.status.result = *verified;
  }
  PodDone(job, pod);
}

// A world of a job on several pods went away. True: others are still there, and are being ended.
bool Controller::EndOthers(Job& job, const absl::Status& failure, const WorldExit& exit,
                           absl::Time earliest) {
  if (!job.failed) job.failed = Job::Failure{failure, exit, earliest};
  job.failed->earliest = std::max(job.failed->earliest, earliest);
  for (const auto& [pod, away] : job.away) {
    if (away.earliest < absl::InfiniteFuture()) {
      job.failed->earliest = std::max(job.failed->earliest, away.earliest);
    }
  }
  bool others = false;
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id) continue;
    others = true;
    if (!world->ending()) StopWorld(*world, "another pod of its job is lost: all start again");
  }
  return others;
}

// The world went away before it had answered; not to be replaced before `earliest`.
void Controller::JobWorldEnded(Job& job, const absl::Status& ended, const WorldExit& exited,
                               absl::Time earliest) {
  if (EndOthers(job, ended, exited, earliest)) return;
  const Job::Failure failed = *std::exchange(job.failed, std::nullopt);
  const absl::Status& failure = failed.why;
  job.status.exit = failed.exit;
  if (job.ending) return EndJob(job);
  const ErrorInfo info = GetErrorInfo(failure);
  if (info.reason == kCheckpointLostReason) {
    return GoToHolders(job, std::string(failure.message()), failed.earliest);
  }
  const std::string reason = info.reason.empty() ? "LaunchRefused" : CamelCase(info.reason);
  const std::string message(failure.message());
  // What the spec itself got wrong will be wrong again.
  if (failure.code() != absl::StatusCode::kUnavailable ||
      job.status.restarts >= job.spec.max_restarts) {
    (void)SetState(job, JobState::kFailed, reason, message);
    return;
  }
  if (job.trains() && job.status.restarts_since_checkpoint >= kRestartsWithoutCheckpoint) {
    (void)SetState(
        job, JobState::kFailed, "NoProgress",
        absl::StrCat(job.status.restarts_since_checkpoint, " restarts without a new checkpoint (",
                     job.status.checkpoint
                         ? absl::StrCat("the last is ", job.status.checkpoint->path)
                         : "there is none",
                     "): the last failure was ", reason, ": ", message));
    return;
  }
  const int64_t doublings = std::min<int64_t>(job.status.restarts, 6);
  ++job.status.restarts;
  ++job.status.restarts_since_checkpoint;
  job.not_before =
      std::max(failed.earliest,
               Now() + std::min(absl::Seconds(60), times_.backoff * (int64_t{1} << doublings)));
  (void)SetState(job, JobState::kRestarting, reason, message);
}

// Ends a job that is cancelled or out of time. May destroy `job`.
void Controller::CheckJob(Job& job) {
  const bool awaited = job.awaited != absl::InfinitePast();
  const bool waits =
      awaited || job.status.state == JobState::kQueued || job.status.state == JobState::kRestarting;
  if (!job.ending && job.status.started != absl::InfinitePast() &&
      job.status.started + job.spec.active_deadline <= Now()) {
    job.ending = true;
    job.end_state = JobState::kFailed;
    job.end_reason = "DeadlineExceeded";
    job.end_message = absl::StrCat("active_deadline of ",
                                   absl::FormatDuration(job.spec.active_deadline), " has passed");
  }
  if (!job.ending) {
    if (waits && !awaited && HoldersAreGone(job)) return;
    if (awaited && job.awaited <= Now()) StopAwaiting(job, "did not come back in time", Now());
    return;
  }
  const bool saves = job.trains() && job.end_state == JobState::kFailed;
  if (saves && awaited && Now() < job.awaited) return;
  if (waits) return EndJob(job);
  if (!job.pool.empty()) return EndOnPool(job, saves ? CancelHow::kSave : CancelHow::kNow);
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->job != job.status.id || world->ending()) continue;
    if (world->state == World::State::kBusy && !world->is_pool) {
      // Whoever cancels does not wait for one that saves.
      const bool told = world->cancel_deadline != absl::InfiniteFuture();
      if (!told || (!saves && world->cancel_deadline > Now() + times_.cancel)) {
        CancelProgram(*world, saves ? CancelHow::kSave : CancelHow::kNow);
      }
    } else if (!saves || !world->resumes) {
      StopWorld(*world, job.end_message);
    }
  }
}

}  // namespace toroid
