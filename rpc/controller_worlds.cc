// The controller's worlds: launch, load, programs, and every way in which they end.
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

std::string NewCredential() {
  char bytes[16];
  TOROID_CHECK_EQ(getrandom(bytes, sizeof(bytes), 0), static_cast<ssize_t>(sizeof(bytes)));
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};
template <typename... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

// The error of a request whose world died, from what the agent saw.
absl::Status WorldDied(const WorldId& world, const std::string& pod, const WorldExit& exit,
                       const absl::Status& failure) {
  ErrorInfo info = GetErrorInfo(failure);
  const bool known = !failure.ok() && !info.reason.empty();
  if (known && exit.rank < 0 && exit.exit_code < 0 && exit.signal == 0) return failure;
  if (!known) info.reason = "RANK_FAILED";
  info.metadata["pod"] = pod;
  info.metadata["job"] = world.job;
  info.metadata["epoch"] = absl::StrCat(world.epoch);
  if (exit.rank >= 0) info.metadata["rank"] = absl::StrCat(exit.rank);
  if (!exit.host.empty()) info.metadata["host"] = exit.host;
  if (exit.exit_code >= 0) info.metadata["exit_code"] = absl::StrCat(exit.exit_code);
  if (exit.signal != 0) info.metadata["signal"] = absl::StrCat(exit.signal);
  std::string text = absl::StrCat("the world on pod ", pod, " ended");
  if (!exit.message.empty()) absl::StrAppend(&text, ": ", exit.message);
  if (!failure.ok()) absl::StrAppend(&text, ": ", failure.message());
  return MakeError(absl::StatusCode::kUnavailable, text, info);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Controller::World>> Controller::NewWorld(const Pod& pod,
                                                                        const Placement& placement,
                                                                        const std::string& job,
                                                                        absl::Duration keep_alive) {
  const std::string& name = pod.registration.pod;
  auto world = std::make_unique<World>();
  world->placement = placement;
  TOROID_ASSIGN_OR_RETURN(
      world->placement.load.mesh,
      ResolveMesh(MeshOn(name, placement.mesh, placement.pod_meshes), pod.registration.slots));
  world->id.job = job.empty() ? absl::StrCat("kept.", name) : job;
  TOROID_ASSIGN_OR_RETURN(world->id.epoch, store_->BumpEpoch(world->id.job, name));
  world->id.view = view_;
  world->job = job;
  world->keep_alive = keep_alive;
  world->credential = NewCredential();
  world->deadline = Now() + times_.start;
  return world;
}

void Controller::Launch(Pod& pod, std::unique_ptr<World> world) {
  pod.world = std::move(world);
  const LoadRequest& load = pod.world->placement.load;
  pod.link.launch(
      {pod.world->id, static_cast<int>(load.mesh.size()), pod.world->credential, load.model});
}

// One that is kept for requests.
absl::Status Controller::StartWorld(Pod& pod, const Placement& placement,
                                    absl::Duration keep_alive) {
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<World> world,
                          NewWorld(pod, placement, /*job=*/"", keep_alive));
  Launch(pod, std::move(world));
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Controller::WorkerAttached(const WorkerAttachment& attachment,
                                                    WorldLink link) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = pods_.find(attachment.pod);
  World* world = it == pods_.end() ? nullptr : it->second->world.get();
  const auto job = jobs_.find(attachment.world.job);
  const bool awaited = world == nullptr
                           ? job != jobs_.end() && job->second->awaited != absl::InfinitePast()
                           : world->credential.empty() && it->second->session == 0;
  if (awaited) {
    return MakeError(
        absl::StatusCode::kUnavailable,
        absl::StrCat("the agent of pod ", attachment.pod, " has not come back yet: try again"),
        {"AGENT_AWAITED", {{"pod", attachment.pod}}, {}});
  }
  if (world == nullptr || !(world->id == attachment.world) ||
      world->credential != attachment.credential || world->worker != 0 ||
      world->state != World::State::kOrdered) {
    ++stale_dropped_;
    return MakeError(absl::StatusCode::kPermissionDenied,
                     absl::StrCat("job ", attachment.world.job, " epoch ", attachment.world.epoch,
                                  " on pod ", attachment.pod, " is not a launch that is expected"),
                     {"STALE_LAUNCH", {{"epoch", absl::StrCat(attachment.world.epoch)}}, {}});
  }
  world->worker = ++last_id_;
  world->link = std::move(link);
  world->state = World::State::kLoading;
  world->deadline = absl::InfiniteFuture();
  world->resumes = false;
  if (world->is_pool) {
    world->state = World::State::kIdle;
    world->idle_since = Now();
    (void)SetState(*jobs_.at(world->job), JobState::kRunning, "", "");
    FeedPools();
    return world->worker;
  }
  if (Trains(*world)) {  // the program loads its model for itself
    const auto job_of = jobs_.find(world->job);
    if (job_of == jobs_.end()) {  // it ended meanwhile
      StopWorld(*world, "its job has ended");
      return world->worker;
    }
    Job& trains = *job_of->second;
    if (trains.status.state != JobState::kRunning) {
      (void)SetState(trains, JobState::kRunning, trains.status.reason, trains.status.message);
    }
    if (attachment.program == 0) {
      SendTask(*world);
    } else {  // it goes on
      world->state = World::State::kBusy;
      world->program = world->last_program = attachment.program;
      if (trains.table) world->link.pods(*trains.table);  // it may have missed a view
    }
    return world->worker;
  }
  world->last_program = world->program = 1;
  world->link.run({1, LoadTask{world->placement.load}, ""});
  return world->worker;
}

void Controller::Assign(World& world, Request& request) {
  request.waiting = false;
  world.request = request.id;
  // The longest wish of its clients: a short one must not take a model from the others.
  if (request.job.empty()) world.keep_alive = std::max(world.keep_alive, request.spec.keep_alive);
  std::string pod_name;
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() == &world) pod_name = name;
  }
  request.sink.accepted({request.id, pod_name, world.placement.load.mesh, world.model.has_value()});
  if (world.state == World::State::kIdle) SendTask(world);
}

void Controller::SendTask(World& world) {
  const Request& request = *requests_.at(world.request);
  world.state = World::State::kBusy;
  world.program = ++world.last_program;
  world.link.run(ProgramOf(world, request, world.program));
}

WorldProgram Controller::ProgramOf(const World& world, const Request& request,
                                   uint64_t number) const {
  WorldProgram program;
  program.number = number;
  program.output_dir = request.output_dir;
  std::visit(Overloaded{[&](const TrainTask&) {
                          const Job& job = *jobs_.at(request.job);
                          TrainOrder order{job.spec};
                          order.spec.placement.load.mesh = world.placement.load.mesh;
                          order.pod = world.pod;
                          order.joins = world.joins;
                          if (job.status.checkpoint) {
                            order.committed_step = job.status.checkpoint->step;
                            order.committed_path = job.status.checkpoint->path;
                          }
                          program.task = std::move(order);
                        },
                        [&](const auto& task) { program.task = task; }},
             request.spec.task);
  return program;
}

bool Controller::Trains(const World& world) const {
  const auto request = requests_.find(world.request);
  return !world.job.empty() && request != requests_.end() &&
         std::holds_alternative<TrainTask>(request->second->spec.task);
}

void Controller::WorkerAnswered(uint64_t session, const WorldId& id, const WorldAnswer& answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->worker != session || session == 0) continue;
    if (!(world->id == id)) break;
    Answer(*world, answer);
    ScheduleWork();
    return;
  }
  ++stale_dropped_;
}

void Controller::Answer(World& world, const WorldAnswer& answer) {
  if (const auto* ending = std::get_if<WorldEnding>(&answer.body)) {
    if (!world.ending()) {
      world.state = World::State::kExiting;
      world.deadline = Now() + times_.exit;
    }
    if (!ending->status.ok()) world.failure = ending->status;
    LeaveOut(world, ending->status);
    return;
  }
  if (const auto* checkpoint = std::get_if<JobCheckpoint>(&answer.body)) {
    const World::Sent* sent = world.sent.empty() ? nullptr : &world.sent.front();
    if (world.left_out) return;
    if (!world.is_pool) return JobCommits(world, world.job, world.id.epoch, *checkpoint);
    if (sent != nullptr && sent->number == answer.number) {
      JobCommits(world, sent->job, sent->epoch, *checkpoint);
    }
    return;  // of a cancelled program too
  }
  if (world.ending() || answer.number != world.program) return;  // of a cancelled program
  const auto it = requests_.find(world.request);
  Request* request = it == requests_.end() ? nullptr : it->second.get();
  if (const auto* progress = std::get_if<ProgressAnswer>(&answer.body)) {
    if (request != nullptr) request->sink.progress(*progress);
    world.silent = absl::InfiniteFuture();
    world.slow_s = 0;
    if (progress->phase == "train" && progress->done > 0) Stepped(world);
    const auto job = jobs_.find(request != nullptr ? request->job : world.is_pool ? "" : world.job);
    if (job != jobs_.end()) JobProgressed(*job->second, world, *progress);
  } else if (const auto* listens = std::get_if<ListensAnswer>(&answer.body)) {
    world.listens = listens->addresses;
    if (const auto job = jobs_.find(world.job); job != jobs_.end()) TellPods(*job->second);
  } else if (const auto* silent = std::get_if<SilentAnswer>(&answer.body)) {
    PodSilent(world, *silent);
  } else if (const auto* tokens = std::get_if<std::vector<TokenEvent>>(&answer.body)) {
    if (request != nullptr) request->sink.tokens(*tokens);
  } else if (const auto* loaded = std::get_if<LoadAnswer>(&answer.body)) {
    if (world.state == World::State::kLoading) Loaded(world, *loaded);
  } else if (const auto* error = std::get_if<absl::Status>(&answer.body)) {
    Finished(world, *error);
  } else if (const auto* generated = std::get_if<GenerateResult>(&answer.body)) {
    Finished(world, RequestResult(*generated));
  } else if (const auto* scored = std::get_if<ScoreResult>(&answer.body)) {
    Finished(world, RequestResult(*scored));
  } else if (const auto* trained = std::get_if<TrainResult>(&answer.body)) {
    Finished(world, RequestResult(*trained));
  } else if (const auto* verified = std::get_if<VerifyResult>(&answer.body)) {
    Finished(world, RequestResult(*verified));
  } else if (const auto* tokenized = std::get_if<TokenizeResult>(&answer.body)) {
    Finished(world, RequestResult(*tokenized));
  } else if (const auto* detokenized = std::get_if<DetokenizeAnswer>(&answer.body)) {
    Finished(world, RequestResult(*detokenized));
  }
}

void Controller::Loaded(World& world, const LoadAnswer& loaded) {
  world.model = loaded.model;
  world.load_s = loaded.load_s;
  world.state = World::State::kIdle;
  world.idle_since = Now();
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() == &world) world.model->pod = name;
  }
  world.model->name = world.placement.load.model;
  world.model->mesh = world.placement.load.mesh;
  if (!world.job.empty()) {
    Job& job = *jobs_.at(world.job);
    (void)SetState(job, JobState::kRunning, "", "");
  }
  if (world.request != 0) SendTask(world);
}

// Program `world.program` has been answered: the world is free again, or of no more use.
void Controller::Finished(World& world, const absl::StatusOr<RequestResult>& answer) {
  if (world.is_pool) return PoolAnswered(world, answer);
  absl::StatusOr<RequestResult> result = answer;
  if (result.ok()) {  // what loading took belongs to the request that caused it
    Timing* timing = nullptr;
    if (auto* generated = std::get_if<GenerateResult>(&*result)) timing = &generated->report.timing;
    if (auto* scored = std::get_if<ScoreResult>(&*result)) timing = &scored->report.timing;
    if (auto* verified = std::get_if<VerifyResult>(&*result)) timing = &verified->report.timing;
    if (timing != nullptr) timing->load_s = std::exchange(world.load_s, 0);
  }
  const bool was_job = !world.job.empty();
  const bool lost = was_job && LosesPod(world, result.status());
  const bool loading = world.state == World::State::kLoading;
  const uint64_t id = std::exchange(world.request, 0);
  world.state = World::State::kIdle;
  world.idle_since = Now();
  world.cancel_deadline = absl::InfiniteFuture();
  world.program = 0;
  if (lost) {
    requests_.erase(id);
  } else if (const auto it = requests_.find(id); it != requests_.end()) {
    FinishRequest(*it->second, result);
  }
  if (loading) {
    SendExit(world, "its model could not be loaded");
  } else if (was_job) {
    SendExit(world, "its job has ended");
  }
}

void Controller::FinishRequest(Request& request, const absl::StatusOr<RequestResult>& result) {
  const std::unique_ptr<Request> owned = std::move(requests_.at(request.id));
  requests_.erase(owned->id);
  if (owned->job.empty()) {
    owned->sink.done(result);
  } else if (const auto job = jobs_.find(owned->job); job != jobs_.end()) {
    JobFinished(*job->second, owned->pod, result);
  }
}

// The client of the world's request has gone. A world that loads goes on loading: it is kept.
void Controller::CancelProgram(World& world, CancelHow how) {
  world.request = world.job.empty() ? 0 : world.request;
  if (world.state != World::State::kBusy || world.worker == 0) return;
  const absl::Duration grace = how == CancelHow::kSave ? times_.save : times_.cancel;
  world.cancel_deadline = std::min(world.cancel_deadline, Now() + grace);
  world.link.cancel(world.program, how);
}

void Controller::SendExit(World& world, const std::string& why) {
  if (world.ending()) return;
  if (world.worker == 0) return StopWorld(world, why);
  world.state = World::State::kExiting;
  world.deadline = Now() + times_.exit;
  world.link.run({++world.last_program, ExitTask{}, ""});
}

void Controller::StopWorld(World& world, const std::string& why) {
  world.state = World::State::kStopping;
  world.deadline = Now() + times_.stop;
  world.cancel_deadline = absl::InfiniteFuture();
  for (const auto& [name, pod] : pods_) {
    if (pod->world.get() == &world && pod->session != 0) pod->link.stop(world.id, why);
  }
}

void Controller::WorkerGone(uint64_t session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->worker != session || session == 0) continue;
    world->worker = 0;
    world->link = WorldLink();
    const auto job = jobs_.find(world->job);
    if (world->state == World::State::kBusy && job != jobs_.end() && job->second->trains()) {
      world->state = World::State::kOrdered;  // it trains on, and dials again
      world->deadline = Now() + times_.lease;
      world->resumes = true;
      return;
    }
    if (pod->session == 0) {
      EndWorld(*pod,
               MakeError(absl::StatusCode::kUnavailable,
                         absl::StrCat("pod ", name, " lost its agent and its world"),
                         {"AGENT_LOST", {{"pod", name}}, {}}),
               WorldExit(), /*confirmed=*/false);
      ScheduleWork();
      return;
    }
    if (world->ending()) return;
    world->failure = absl::UnavailableError("rank 0 closed its stream");
    world->state = World::State::kExiting;
    world->deadline = Now() + times_.exit;
    LeaveOut(*world, world->failure);
    return;
  }
}

void Controller::CheckWorld(Pod& pod) {
  World& world = *pod.world;
  const absl::Time now = Now();
  if (world.state == World::State::kOrdered && world.deadline <= now) {
    const absl::Duration limit = world.resumes ? times_.lease : times_.start;
    world.failure = MakeError(
        absl::StatusCode::kUnavailable,
        absl::StrCat(world.resumes ? "rank 0 lost its stream and did not attach again within "
                                   : "the world did not attach within ",
                     absl::FormatDuration(limit)),
        {world.resumes ? "STREAM_LOST" : "START_TIMEOUT", {}, {}});
    LeaveOut(world, world.failure);
    StopWorld(world, "it did not attach in time");
  } else if (world.state == World::State::kExiting && world.deadline <= now) {
    StopWorld(world, "it did not exit in time");
  } else if (world.state == World::State::kStopping && world.deadline <= now) {
    const bool heard = pod.session != 0 && pod.last_seen > world.deadline - times_.stop;
    EndWorld(pod, world.failure, WorldExit(), /*confirmed=*/heard);
  } else if (world.cancel_deadline <= now) {
    StopWorld(world, "a cancelled program did not stop in time");
  } else if (world.state == World::State::kIdle && world.job.empty() && world.request == 0 &&
             (pod.draining || world.idle_since + world.keep_alive <= now)) {
    SendExit(world, pod.draining ? "its pod drains" : "nobody used it");
  } else {
    CheckPodOfJob(pod);
  }
}

// The world is no more. unconfirmed: it may still run where nobody can see it.
void Controller::EndWorld(Pod& pod, const absl::Status& failure, const WorldExit& exit,
                          bool confirmed) {
  const std::unique_ptr<World> world = std::move(pod.world);
  const std::string& name = pod.registration.pod;
  // Refused before it began, or asked to end and nothing said against it: take the words as they
  // are.
  const bool refused = world->state == World::State::kOrdered && !failure.ok();
  absl::Status why = failure;
  if (!refused && !(world->ending() && failure.ok() && world->request == 0)) {
    why = WorldDied(world->id, name, exit, failure);
  }
  if (world->is_pool) {
    if (why.ok()) why = WorldDied(world->id, name, exit, failure);
    PoolWorldEnded(*world, why, exit);
  }
  if (!world->job.empty()) {
    const bool answered = requests_.erase(world->request) == 0;
    const auto job = jobs_.find(world->job);
    // Its part is done; the job's other pods may still be at theirs.
    if (job != jobs_.end() &&
        (!answered || world->is_pool || world->left_out || job->second->failed)) {
      if (why.ok()) why = WorldDied(world->id, name, exit, failure);
      const absl::Time expired = std::max(leases_.Deadline(name), Now());
      const absl::Time earliest = confirmed ? Now() : expired + times_.lease_margin;
      if (PodOfJobEnded(*job->second, *world, name, why, confirmed, earliest)) return;
      if (!confirmed) job->second->unconfirmed_pod = name;
      JobWorldEnded(*job->second, why, exit, earliest);
    }
    return;
  }
  if (const auto it = requests_.find(world->request); it != requests_.end()) {
    FinishRequest(*it->second, why.ok() ? absl::UnavailableError("the world ended") : why);
  }
}

}  // namespace toroid
