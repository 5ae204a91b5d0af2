#include "rpc/controller.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

constexpr size_t kMaxRequests = 1000;

bool SameModel(const LoadRequest& a, LoadRequest b) {
  b.mesh = a.mesh;
  return a == b;
}

}  // namespace

Controller::Controller(JobStore* store, LogStore* logs, JobCodec codec, ControllerTimes times,
                       std::function<absl::Time()> now)
    : store_(store),
      logs_(logs),
      codec_(std::move(codec)),
      times_(times),
      now_(std::move(now)),
      started_(now_()),
      leases_(times.lease) {
  view_ = store_->BumpView().value_or(1);
  for (const std::string& name : store_->Draining().value_or(std::vector<std::string>())) {
    std::unique_ptr<Pod>& pod = pods_[name] = std::make_unique<Pod>();
    pod->registration.pod = name;
    pod->draining = true;
  }
  LoadJobs();
}

Controller::~Controller() = default;

void Controller::Tick() {
  const std::lock_guard<std::mutex> lock(mutex_);
  CheckDeadlines();
  ScheduleWork();
}

void Controller::CheckDeadlines() {
  const absl::Time now = Now();
  for (const std::string& name : leases_.TakeExpired(now)) {
    Pod& pod = *pods_.at(name);
    pod.lost = true;
    pod.session = 0;
    pod.link = AgentLink();
    view_ = store_->BumpView().value_or(view_ + 1);
    if (pod.world != nullptr) {
      EndWorld(pod,
               MakeError(absl::StatusCode::kUnavailable,
                         absl::StrCat("pod ", name, " is lost: its agent was not heard of for ",
                                      absl::FormatDuration(times_.lease)),
                         {"AGENT_LOST", {{"pod", name}}, {}}),
               WorldExit(), /*confirmed=*/false);
    }
  }
  for (const auto& [name, pod] : pods_) {
    if (pod->world != nullptr) CheckWorld(*pod);
  }
  std::vector<uint64_t> late;
  for (const auto& [id, request] : requests_) {
    if (request->deadline <= now) late.push_back(id);
  }
  for (uint64_t id : late) {
    CancelRun(id);
    FinishRequest(*requests_.at(id), absl::DeadlineExceededError("the request ran out of time"));
  }
  std::vector<Job*> jobs;
  for (const auto& [id, job] : jobs_) jobs.push_back(job.get());
  for (Job* job : jobs) CheckJob(*job);
}

// The world that is at the request, or is to be, wants it no more.
void Controller::CancelRun(uint64_t request) {
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr) continue;
    if (world->is_pool) {
      CancelSent(*world, request, CancelHow::kNow, /*awaited=*/false);
    } else if (world->request == request) {
      CancelProgram(*world);
    }
  }
}

bool Controller::GiveToKeptWorld(Request& request) {
  World* best = nullptr;
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || world->ending() || !world->job.empty() || world->request != 0 ||
        world->state == World::State::kBusy || pod->draining) {
      continue;
    }
    const Placement& wanted = request.spec.placement;
    const auto mesh = ResolveMesh(wanted.mesh, pod->registration.slots);
    if ((!wanted.pod.empty() && wanted.pod != name) || !mesh.ok() ||
        !(*mesh == world->placement.load.mesh) || !SameModel(world->placement.load, wanted.load)) {
      continue;
    }
    if (best == nullptr ||
        (best->state != World::State::kIdle && world->state == World::State::kIdle)) {
      best = world;
    }
  }
  if (best == nullptr) return false;
  Assign(*best, request);
  return true;
}

std::vector<PodView> Controller::ViewPods() const {
  std::vector<PodView> views;
  for (const auto& [name, pod] : pods_) {
    const World* world = pod->world.get();
    using State = PodView::State;
    const bool idle = world != nullptr && world->job.empty() && world->request == 0 &&
                      world->state == World::State::kIdle;
    views.push_back({name, pod->registration.slots,
                     pod->session == 0 || pod->draining ? State::kClosed
                     : !pod->foreign.empty()            ? State::kEnding
                     : world == nullptr                 ? State::kFree
                     : world->ending()                  ? State::kEnding
                     : idle                             ? State::kIdleKept
                                                        : State::kBusy,
                     world == nullptr ? absl::InfinitePast() : world->idle_since});
  }
  return views;
}

// What waits for pods, and whose it is, in the same order; their keys are its indices.
struct Controller::Wanted {
  uint64_t request = 0;
  Job* job = nullptr;
  int64_t returns = -1;  // of the job's pods, this one
};

std::vector<Controller::Wanted> Controller::WhatWaits(std::vector<Waiting>* waiting) {
  std::vector<Wanted> wanted;
  std::vector<Request*> asked;
  for (const auto& [id, request] : requests_) {
    if (request->waiting && request->pool.empty()) asked.push_back(request.get());
  }
  for (Request* request : asked) {
    if (GiveToKeptWorld(*request)) continue;
    const Placement& placement = request->spec.placement;
    waiting->push_back({wanted.size(), placement.mesh, placement.pod, 0, request->id});
    wanted.push_back({request->id});
  }
  for (const auto& [id, job] : jobs_) {
    const Placement& placement = job->spec.placement;
    std::vector<int64_t> returning = Returning(*job);
    // Nobody takes the place that is another one's own.
    std::stable_partition(returning.begin(), returning.end(), [&](int64_t pod) {
      const auto own = pods_.find(job->away.at(pod).last_pod());
      return own != pods_.end() && own->second->session != 0 && own->second->world == nullptr &&
             own->second->foreign.empty() && !own->second->draining;
    });
    for (const int64_t pod : returning) {
      waiting->push_back({wanted.size(), job->mesh_of(pod), "", job->spec.priority, job->order,
                          /*pods=*/1, /*pod_meshes=*/{}, /*any_pod=*/true,
                          job->away.at(pod).last_pod()});
      wanted.push_back({0, job.get(), pod});
    }
    const JobState state = job->status.state;
    if ((state != JobState::kQueued && state != JobState::kRestarting) || !job->pool.empty() ||
        job->not_before > Now()) {
      continue;
    }
    ExplainWaiting(*job);
    waiting->push_back({wanted.size(), placement.mesh, placement.pod, job->spec.priority,
                        job->order, job->pods(), placement.pod_meshes});
    waiting->back().least = job->least_pods();
    AskWhereItLies(*job, waiting->back());
    wanted.push_back({0, job.get()});
  }
  return wanted;
}

// Waiting requests take kept worlds; then jobs and requests together take pods.
void Controller::ScheduleWork() {
  FeedPools();
  std::vector<Waiting> waiting;
  const std::vector<Wanted> wanted = WhatWaits(&waiting);
  if (waiting.empty()) return;
  std::map<uint64_t, std::vector<Pod*>> starts;  // by key of a job
  for (const Assignment& item : Schedule(ViewPods(), waiting)) {
    Pod& pod = *pods_.at(item.pod);
    if (item.action == Assignment::Action::kEvict) SendExit(*pod.world, "its pod is needed");
    if (item.action != Assignment::Action::kStart) continue;
    const Wanted& of = wanted[item.key];
    if (of.job != nullptr) {
      starts[item.key].push_back(&pod);
      continue;
    }
    Request& request = *requests_.at(of.request);
    const absl::Status started = StartWorld(pod, request.spec.placement, request.spec.keep_alive);
    if (started.ok()) {
      Assign(*pod.world, request);
    } else {
      FinishRequest(request, started);
    }
  }
  for (size_t key = 0; key < wanted.size(); ++key) {
    const Wanted& of = wanted[key];
    if (of.job == nullptr) continue;
    const std::vector<Pod*>& pods = starts[key];
    if (of.returns < 0) {
      if (BeginsWith(*of.job, pods.size())) (void)StartJob(*of.job, pods);
    } else if (!pods.empty()) {
      (void)StartReturn(*of.job, of.returns, *pods[0]);
    }
  }
}

uint64_t Controller::view() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return view_;
}

// Why no live pod can ever serve it; OK if one can.
absl::Status Controller::CannotServe(const Placement& placement, int64_t pods) const {
  for (const auto& [name, wish] : placement.pod_meshes) {
    const auto named = pods_.find(name);
    if (named == pods_.end() || named->second->session == 0) {
      return MakeError(absl::StatusCode::kFailedPrecondition,
                       absl::StrCat("pod_mesh: no such pod: ", name, ": see toroid pod list"),
                       {"NO_POD", {{"pod", name}}, {}});
    }
    const absl::Status fits = ResolveMesh(wish, named->second->registration.slots).status();
    if (!fits.ok()) {
      return MakeError(fits.code(), absl::StrCat("pod_mesh of ", name, ": ", fits.message()),
                       GetErrorInfo(fits));
    }
  }
  const Pod* largest = nullptr;
  int64_t able = 0;
  for (const auto& [name, pod] : pods_) {
    if (pod->session == 0 || (!placement.pod.empty() && placement.pod != name)) continue;
    const MeshWish& wish = MeshOn(name, placement.mesh, placement.pod_meshes);
    able += ResolveMesh(wish, pod->registration.slots).ok();
    if (placement.pod_meshes.count(name) > 0) continue;
    if (largest == nullptr || pod->registration.slots > largest->registration.slots) {
      largest = pod.get();
    }
  }
  if (able >= pods) return absl::OkStatus();
  if (largest == nullptr && able == 0) {
    return placement.pod.empty()
               ? MakeError(absl::StatusCode::kFailedPrecondition,
                           "no pod is registered: start an agent: toroid agent --pod a",
                           {"NO_POD", {}, {}})
               : MakeError(absl::StatusCode::kNotFound,
                           absl::StrCat("no such pod: ", placement.pod, ": see toroid pod list"),
                           {"NO_POD", {{"pod", placement.pod}}, {}});
  }
  if (largest != nullptr) {
    TOROID_RETURN_IF_ERROR(ResolveMesh(placement.mesh, largest->registration.slots).status());
  }
  return MakeError(absl::StatusCode::kFailedPrecondition,
                   absl::StrCat("the job needs ", pods, " pods, of those that are registered ",
                                able, " can take it: start another agent: toroid agent --pod NAME"),
                   {"TOO_FEW_PODS", {}, {}});
}

uint64_t Controller::StartRequest(const RequestSpec& spec, RequestSink sink) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t id = ++last_id_;
  auto request = std::make_unique<Request>();
  request->id = id;
  request->spec = spec;
  request->sink = std::move(sink);
  request->deadline = Now() + spec.timeout;
  absl::Status refusal;
  if (requests_.size() >= kMaxRequests) {
    refusal = MakeError(absl::StatusCode::kResourceExhausted,
                        absl::StrCat("too many requests wait: ", requests_.size(), ": try later"),
                        {"QUEUE_FULL", {}, {}});
  } else if (!spec.placement.on_pool.empty()) {
    auto pool = PoolFor(spec.placement, /*pods=*/1);
    refusal = pool.status();
    if (pool.ok()) request->pool = *std::move(pool);
  } else {
    refusal = CannotServe(spec.placement);
  }
  if (!refusal.ok()) {
    request->sink.done(refusal);
    return id;
  }
  requests_[id] = std::move(request);
  ScheduleWork();
  return id;
}

void Controller::CancelRequest(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  CancelRun(id);
  FinishRequest(*it->second, absl::CancelledError("cancelled"));
  ScheduleWork();
}

std::vector<ModelStatus> Controller::ListModels() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ModelStatus> models;
  for (const auto& [name, pod] : pods_) {
    const World* world = pod->world.get();
    if (world != nullptr && world->job.empty() && world->model.has_value() && !world->ending()) {
      models.push_back(*world->model);
    }
  }
  return models;
}

uint64_t Controller::stale_dropped() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stale_dropped_;
}

}  // namespace toroid
