// What outlives a controller: the store's jobs, and the worlds of those that train.
#include "absl/strings/str_cat.h"
#include "rpc/controller_state.h"

namespace toroid {

void Controller::LoadJobs() {
  const auto stored =
      store_->List({static_cast<int>(JobState::kQueued), static_cast<int>(JobState::kStarting),
                    static_cast<int>(JobState::kRunning), static_cast<int>(JobState::kRestarting)},
                   0, static_cast<int>(kMaxJobs));
  if (!stored.ok()) return;
  for (const StoredJob& item : *stored) {
    auto spec = codec_.decode_spec(item.spec);
    auto status = codec_.decode_status(item.status);
    if (!spec.ok() || !status.ok()) continue;
    auto owned = std::make_unique<Job>();
    Job& job = *owned;
    job.spec = *std::move(spec);
    job.order = item.order;
    job.status = *std::move(status);
    job.sequence = item.sequence;
    for (const JobPod& pod : job.status.pods) job.holders.push_back(pod.pod);
    jobs_[item.id] = std::move(owned);
    if (job.status.state == JobState::kStarting || job.status.state == JobState::kRunning) {
      // Its world may still run: until its pod says otherwise, wait for the lease.
      if (!job.spec.placement.on_pool.empty()) {  // its pool's world will take it
        (void)SetState(job, JobState::kRestarting, "ControllerRestarted",
                       "the controller was restarted");
        continue;
      }
      if (job.trains() && job.pods() > 1 &&
          static_cast<int64_t>(job.status.pods.size()) == job.pods()) {
        AwaitPods(job);
        continue;
      }
      if (job.trains() && job.pods() == 1) {
        job.awaited = Now() + times_.lease + times_.lease_margin;
        continue;
      }
      job.unconfirmed_pod = job.status.pod;
      job.not_before = Now() + times_.lease + times_.lease_margin;
      (void)SetState(job, JobState::kRestarting, "ControllerRestarted",
                     "the controller was restarted");
    }
  }
  for (auto item = stored->rbegin(); item != stored->rend(); ++item) {  // the oldest first
    const auto found = jobs_.find(item->id);
    if (found == jobs_.end()) continue;
    Job& job = *found->second;
    job.arrival = ++last_id_;
    if (job.spec.placement.on_pool.empty()) continue;
    job.pool = PoolFor(job.spec.placement, /*pods=*/1).value_or(job.spec.placement.on_pool);
  }
}

// Its worlds are taken to be where they were: their agents will say so, or not, and each rank 0
// attaches again and tells where its ranks listen. What pods told of their steps is soft.
void Controller::AwaitPods(Job& job) {
  const absl::Time limit = Now() + times_.lease + times_.lease_margin;
  for (int64_t number = 0; number < job.pods(); ++number) {
    const JobPod& part = job.status.pods[number];
    if (part.state == "DONE") {
      ++job.answered;
      continue;
    }
    if (part.state == "WAITING") {
      job.away[number].counts = false;
      job.away[number].prefers = part.pod;
      continue;
    }
    const bool lost = part.state == "LOST", joins = part.state == "JOINING";
    if (lost || joins) {
      Job::Away& away = job.away[number];
      away.why = "it was so before the controller was started anew";
      away.pod = part.pod;
      away.unconfirmed = lost;
      away.earliest = lost ? limit : absl::InfiniteFuture();
      away.launches = joins;
    }
    std::unique_ptr<Pod>& pod = pods_[part.pod];
    if (pod == nullptr) pod = std::make_unique<Pod>();
    pod->registration.pod = part.pod;
    if (lost && pod->draining) job.away[number].counts = false;  // nothing has failed
    if (lost || pod->world != nullptr) continue;
    auto world = std::make_unique<World>();
    world->id = {job.status.id, part.epoch, view_};
    world->placement = job.spec.placement;
    world->placement.load.mesh = part.mesh;
    world->job = job.status.id;
    world->pod = number;
    world->joins = joins;
    world->adopted = true;
    world->stepped = part.state == "TRAINING";
    world->deadline = limit;
    world->resumes = true;
    Request& request = NewRequest(job, number);
    request.waiting = false;
    world->request = request.id;
    pod->world = std::move(world);
  }
}

// Its world has ended, or nobody has reported it in time: "pod a", why.
void Controller::StopAwaiting(Job& job, absl::string_view why, absl::Time earliest) {
  job.awaited = absl::InfinitePast();
  job.not_before = earliest;
  (void)SetState(job, JobState::kRestarting, "ControllerRestarted",
                 absl::StrCat("the controller was restarted, and pod ", job.status.pod, " ", why));
}

// The world of a job that trains, from before this controller was: true if it is the job's present
// launch. Its rank 0 will attach again.
bool Controller::Adopt(Pod& pod, const HeldWorld& held) {
  const auto found = jobs_.find(held.id.job);
  if (found == jobs_.end() || pod.world != nullptr || held.credential.empty()) return false;
  Job& job = *found->second;
  if (job.awaited == absl::InfinitePast() || job.status.pod != pod.registration.pod ||
      job.status.epoch != held.id.epoch) {
    return false;
  }
  job.awaited = absl::InfinitePast();
  auto world = std::make_unique<World>();
  world->id = held.id;
  world->placement = job.spec.placement;
  world->placement.load.mesh = job.status.mesh;
  world->job = job.status.id;
  world->credential = held.credential;
  world->deadline = Now() + times_.lease;
  world->resumes = true;
  Request& request = NewRequest(job);
  request.waiting = false;
  world->request = request.id;
  pod.world = std::move(world);
  return true;
}

}  // namespace toroid
