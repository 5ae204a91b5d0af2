// The controller's pools: worlds that run the programs of several clients in one order.
//
// What is to run in a pool waits in the controller, by priority and then by arrival, until it is
// sent. From then on its place is fixed: the world numbers nothing and answers in the order of the
// numbers. A few programs are sent ahead, so that the world prepares them while earlier ones run;
// of those only the first is `world.program`, the one that answers are about.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

// Programs that a world may have been sent and not have answered: what they hold in memory, and
// what priority comes too late for, is bounded. Of short ones there are more, what it does in
// kSentTime, or it would wait for them.
constexpr size_t kFewSent = 8, kMostSent = 64;
constexpr absl::Duration kSentTime = absl::Milliseconds(20);
constexpr size_t kMostServed = 64;

// Nothing said is the pool's mesh.
absl::Status CheckMesh(const Placement& placement, const std::string& pool, const MeshShape& mesh) {
  if (placement.mesh == MeshWish()) return absl::OkStatus();
  const auto wanted = ResolveMesh(placement.mesh, mesh.size());
  if (wanted.ok() && *wanted == mesh) return absl::OkStatus();
  return BadField("mesh", wanted.ok() ? absl::StrCat("pool ", pool, " has mesh ", ToString(mesh),
                                                     ", not ", ToString(*wanted), ": leave it out")
                                      : absl::StrCat("pool ", pool, " has mesh ", ToString(mesh),
                                                     ": ", wanted.status().message()));
}

// How many programs a world may have been sent whose programs take `turn`.
size_t SentAhead(absl::Duration turn) {
  if (turn * kMostSent <= kSentTime) return kMostSent;
  return std::max(kFewSent, static_cast<size_t>(kSentTime / turn));
}

}  // namespace

// The id of the pool job that the placement names.
absl::StatusOr<std::string> Controller::PoolFor(const Placement& placement, int64_t pods) const {
  const std::string& wanted = placement.on_pool;
  if (!placement.pod.empty()) {
    return BadField("pod", absl::StrCat(placement.pod, ": pool ", wanted,
                                        " has its place: leave one of the two out"));
  }
  if (pods > 1) {
    return BadField("mesh.pods", absl::StrCat(pods, ": pool ", wanted,
                                              " is on one pod: leave one of the two out"));
  }
  const Job* pool = nullptr;  // of several with the name the newest
  for (const auto& [id, job] : jobs_) {
    if (!job->is_pool() || job->ending || (id != wanted && job->spec.name != wanted)) continue;
    if (pool == nullptr || id == wanted ||
        (pool->status.id != wanted && job->order > pool->order)) {
      pool = job.get();
    }
  }
  if (pool == nullptr) {
    return MakeError(absl::StatusCode::kNotFound,
                     absl::StrCat("no such pool: ", wanted,
                                  ": submit a job with pool {}, or see toroid job list"),
                     {"NO_POOL", {{"pool", wanted}}, {}});
  }
  const std::string& id = pool->status.id;
  for (const auto& [name, pod] : pods_) {
    const World* world = pod->world.get();
    if (world == nullptr || world->job != id) continue;
    TOROID_RETURN_IF_ERROR(CheckMesh(placement, id, world->placement.load.mesh));
  }
  return id;
}

// One that takes programs, and its pod; null: there is none now.
Controller::World* Controller::WorldOfPool(const std::string& pool, std::string* pod_name) const {
  for (const auto& [name, pod] : pods_) {
    World* world = pod->world.get();
    if (world == nullptr || !world->is_pool || world->job != pool || world->worker == 0 ||
        world->ending()) {
      continue;
    }
    *pod_name = name;
    return world;
  }
  return nullptr;
}

// Sends ahead what the pools' worlds may have; ends what waits for a pool that is no more.
void Controller::FeedPools() {
  EndOrphans();
  std::vector<std::string> pools;
  for (const auto& [id, job] : jobs_) {
    if (job->is_pool() && job->status.state == JobState::kRunning && !job->ending) {
      pools.push_back(id);
    }
  }
  for (const std::string& pool : pools) {
    std::string pod;
    World* world = WorldOfPool(pool, &pod);
    if (world == nullptr) continue;
    while (world->sent.size() < SentAhead(world->mean_turn) && SendNext(pool, *world, pod))
      continue;
  }
}

void Controller::EndOrphans() {
  const auto ended = [this](const std::string& pool) {
    std::string how;
    const auto stored = store_->Get(pool);
    const auto status = stored.ok() ? codec_.decode_status(stored->status)
                                    : absl::StatusOr<JobStatus>(stored.status());
    if (status.ok()) {
      how = absl::StrCat(" (", ToString(status->state), status->message.empty() ? "" : ": ",
                         status->message, ")");
    }
    return MakeError(
        absl::StatusCode::kUnavailable,
        absl::StrCat("pool ", pool, " has ended", how, ": submit again, on a pool that runs"),
        {"POOL_ENDED", {{"pool", pool}}, {}});
  };
  std::vector<uint64_t> requests;
  for (const auto& [id, request] : requests_) {
    if (request->waiting && !request->pool.empty() && jobs_.find(request->pool) == jobs_.end()) {
      requests.push_back(id);
    }
  }
  for (const uint64_t id : requests) {
    FinishRequest(*requests_.at(id), ended(requests_.at(id)->pool));
  }
  std::vector<Job*> jobs;
  for (const auto& [id, job] : jobs_) {
    const JobState state = job->status.state;
    const bool waits = state == JobState::kQueued || state == JobState::kRestarting;
    if (waits && !job->pool.empty() && jobs_.find(job->pool) == jobs_.end()) {
      jobs.push_back(job.get());
    }
  }
  for (Job* job : jobs) {
    if (job->ending) {
      EndJob(*job);
      continue;
    }
    const std::string why(ended(job->pool).message());
    (void)SetState(*job, JobState::kFailed, "PoolEnded", why);
  }
}

// What waits for the pool and is next. False: nothing does.
bool Controller::SendNext(const std::string& pool, World& world, const std::string& pod) {
  Request* request = nullptr;  // all of one priority: the first is the oldest
  for (const auto& [id, waiting] : requests_) {
    if (waiting->waiting && waiting->pool == pool) {
      request = waiting.get();
      break;
    }
  }
  Job* job = nullptr;
  for (const auto& [id, waiting] : jobs_) {
    const JobState state = waiting->status.state;
    const bool waits = state == JobState::kQueued || state == JobState::kRestarting;
    if (!waits || waiting->pool != pool || waiting->ending || waiting->not_before > Now()) continue;
    const auto earlier = [](const Job& a, const Job& b) {
      return a.spec.priority != b.spec.priority ? a.spec.priority > b.spec.priority
                                                : a.arrival < b.arrival;
    };
    if (job == nullptr || earlier(*waiting, *job)) job = waiting.get();
  }
  if (request == nullptr && job == nullptr) return false;
  const MeshShape& mesh = world.placement.load.mesh;
  if (job == nullptr ||
      (request != nullptr &&
       (job->spec.priority < 0 || (job->spec.priority == 0 && request->id < job->arrival)))) {
    const absl::Status fits = CheckMesh(request->spec.placement, pool, mesh);
    if (fits.ok()) {
      Send(*request, world, pod, /*epoch=*/0);
    } else {
      FinishRequest(*request, fits);
    }
    return true;
  }
  absl::Status sent = CheckMesh(job->spec.placement, pool, mesh);
  if (!sent.ok()) {
    (void)SetState(*job, JobState::kFailed, "BadMesh", std::string(sent.message()));
    return true;
  }
  return SendJob(*job, world, pod).ok();
}

absl::Status Controller::SendJob(Job& job, World& world, const std::string& pod) {
  const auto epoch = store_->BumpEpoch(job.status.id, pod);
  if (!epoch.ok()) {
    job.not_before = Now() + times_.backoff;
    return epoch.status();
  }
  job.status.progress.reset();
  job.status.pod = pod;
  job.status.mesh = world.placement.load.mesh;
  job.status.epoch = *epoch;
  (void)SetState(job, JobState::kStarting, "", "");
  world.served.push_back(job.status.id);
  if (world.served.size() > kMostServed) world.served.pop_front();
  Send(NewRequest(job), world, pod, *epoch);
  return absl::OkStatus();
}

void Controller::Send(Request& request, World& world, const std::string& pod, uint64_t epoch) {
  request.waiting = false;
  const uint64_t number = ++world.last_program;
  world.sent.push_back({number, request.id, request.job, epoch});
  WorldProgram program = ProgramOf(world, request, number);
  program.pool.emplace(PoolPart{request.job, epoch, request.spec.placement.load});
  program.pool->load.mesh = world.placement.load.mesh;
  request.sink.accepted({request.id, pod, world.placement.load.mesh, /*kept=*/false});
  world.link.run(program);
  if (world.sent.size() == 1) BeginFirst(world);
}

// The first of those that were sent is at its turn.
void Controller::BeginFirst(World& world) {
  world.program = world.request = 0;
  world.cancel_deadline = absl::InfiniteFuture();
  world.state = world.sent.empty() ? World::State::kIdle : World::State::kBusy;
  if (world.sent.empty()) return;
  world.turn_began = Now();
  const World::Sent& first = world.sent.front();
  world.program = first.number;
  world.request = first.request;
  if (first.told) world.cancel_deadline = Now() + times_.save;
  const auto job = jobs_.find(first.job);
  if (job != jobs_.end() && first.request != 0) {
    absl::Time& started = job->second->status.started;
    if (started == absl::InfinitePast()) started = Now();
    (void)SetState(*job->second, JobState::kRunning, "", "");
  }
}

void Controller::PoolAnswered(World& world, const absl::StatusOr<RequestResult>& result) {
  if (world.sent.empty()) return;  // it answers what nobody asked
  const uint64_t id = world.sent.front().request;
  world.sent.pop_front();
  const absl::Duration turn = Now() - world.turn_began;
  world.mean_turn =
      world.mean_turn == absl::InfiniteDuration() ? turn : (7 * world.mean_turn + turn) / 8;
  if (const auto it = requests_.find(id); it != requests_.end()) FinishRequest(*it->second, result);
  BeginFirst(world);
}

// If it was sent the request. awaited: somebody still wants to hear how it ends.
void Controller::CancelSent(World& world, uint64_t request, CancelHow how, bool awaited) {
  const auto sent =
      std::find_if(world.sent.begin(), world.sent.end(),
                   [request](const World::Sent& item) { return item.request == request; });
  if (request == 0 || sent == world.sent.end() || sent->told == how || world.worker == 0) return;
  sent->told = how;
  if (!awaited) sent->request = 0;
  world.link.cancel(sent->number, how);
  if (sent->number != world.program) return;  // answered at its turn, without the ranks
  if (!awaited) world.request = 0;
  // Others wait for the world: it is given more time than one that runs for a single client.
  world.cancel_deadline = std::min(world.cancel_deadline, Now() + times_.save);
}

// Of a job that was sent to a pool and is to end. May destroy `job`.
void Controller::EndOnPool(Job& job, CancelHow how) {
  std::string pod;
  World* world = WorldOfPool(job.pool, &pod);
  if (world == nullptr) return;  // about to end, and the job with it
  for (const World::Sent& sent : world->sent) {
    if (sent.job != job.status.id) continue;
    const uint64_t request = sent.request;
    const bool runs = sent.number == world->program;
    CancelSent(*world, request, runs ? how : CancelHow::kNow, /*awaited=*/runs);
    if (runs) return;
    requests_.erase(request);
    return EndJob(job);
  }
}

// The one that ran fails with its world, or goes on in the next one as its max_restarts says; the
// others wait again.
void Controller::PoolWorldEnded(World& world, const absl::Status& why, const WorldExit& exit) {
  const auto pool = jobs_.find(world.job);
  const bool ends = pool == jobs_.end() || pool->second->ending;
  const std::deque<World::Sent> sent = std::exchange(world.sent, {});
  world.request = 0;
  for (size_t i = 0; i < sent.size(); ++i) {
    const auto found = requests_.find(sent[i].request);
    if (found == requests_.end()) continue;
    if (sent[i].job.empty()) {
      found->second->waiting = true;
      if (i == 0 && !ends) FinishRequest(*found->second, why);
      continue;
    }
    requests_.erase(found);
    Job& job = *jobs_.at(sent[i].job);
    if (job.ending) {
      EndJob(job);
    } else if (i == 0 && !ends) {
      JobWorldEnded(job, why, exit, Now());
    } else {
      (void)SetState(job, JobState::kRestarting, "PoolRestarts",
                     absl::StrCat("pool ", world.job, " lost its world"));
    }
  }
}

// Lines that begin with the id of a job go into its log too.
void Controller::LogOfPool(const World& world, const std::vector<LogLine>& lines) {
  std::map<std::string, std::vector<LogLine>> logs;
  for (const LogLine& line : lines) {
    for (const std::string& job : world.served) {
      if (!absl::StartsWith(line.text, job) || line.text.compare(job.size(), 2, ": ") != 0)
        continue;
      logs[job].push_back(line);
      logs[job].back().text.erase(0, job.size() + 2);
      break;
    }
  }
  for (const auto& [job, own] : logs) {
    logs_->Append(job, own);
    for (const auto& [number, subscription] : subscriptions_) {
      if (subscription->job == job) subscription->sink.more_log();
    }
  }
}

}  // namespace toroid
