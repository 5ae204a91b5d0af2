// What the pods of one job tell of themselves, and what all of them have told alike.
#include <algorithm>

#include "rpc/controller_state.h"

namespace toroid {
namespace {

// Of hashes and of checkpoints, kept of each pod: no pod is ahead of the others by more.
constexpr size_t kMostTold = 256;

// The newest key that all have; 0: there is none.
template <typename Keys, typename Of>
int64_t NewestCommon(const Keys& first, size_t pods, Of of) {
  for (auto key = first.rbegin(); key != first.rend(); ++key) {
    bool all = true;
    for (size_t q = 1; q < pods; ++q) all = all && of(q, *key);
    if (all) return *key;
  }
  return 0;
}

}  // namespace

void Controller::PodProgressed(Job& job, const World& world, const TaskProgress& progress) {
  const size_t pod = static_cast<size_t>(world.pod);
  if (pod >= job.status.pods.size()) return;
  job.told_by_pods.resize(job.status.pods.size());
  job.status.pods[pod].progress = progress;
  if (!progress.exchange.has_value() || progress.exchange->hash_step == 0) return;
  std::map<int64_t, uint64_t>& hashes = job.told_by_pods[pod].hashes;
  hashes[progress.exchange->hash_step] = progress.exchange->hash;
  if (hashes.size() > kMostTold) hashes.erase(hashes.begin());
  Agree(job);
}

void Controller::PodCommits(Job& job, const World& world, const JobCheckpoint& checkpoint) {
  const size_t pod = static_cast<size_t>(world.pod);
  if (pod >= job.status.pods.size()) return;
  job.told_by_pods.resize(job.status.pods.size());
  job.status.pods[pod].checkpoint = checkpoint;
  std::set<int64_t>& steps = job.told_by_pods[pod].checkpoints;
  steps.insert(checkpoint.step);
  if (steps.size() > kMostTold) steps.erase(steps.begin());
  Agree(job);
}

void Controller::Agree(Job& job) {
  const std::vector<Job::Told>& told = job.told_by_pods;
  PodsAgreement& agreement = job.status.agreement;
  agreement.checkpoint_step =
      NewestCommon(told[0].checkpoints, told.size(),
                   [&told](size_t q, int64_t step) { return told[q].checkpoints.count(step) > 0; });
  std::set<int64_t> hashed;
  for (const auto& [step, hash] : told[0].hashes) hashed.insert(step);
  agreement.hash_step = NewestCommon(hashed, told.size(), [&told](size_t q, int64_t step) {
    return told[q].hashes.count(step) > 0;
  });
  if (agreement.hash_step == 0) return;
  agreement.hash = told[0].hashes.at(agreement.hash_step);
  agreement.hashes_differ = std::any_of(told.begin(), told.end(), [&](const Job::Told& pod) {
    return pod.hashes.at(agreement.hash_step) != agreement.hash;
  });
}

}  // namespace toroid
