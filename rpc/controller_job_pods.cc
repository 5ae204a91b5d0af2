// What the pods of one job tell of themselves, and what all of them have told alike.
#include <algorithm>

#include "rpc/controller_state.h"

namespace toroid {
namespace {

// Of hashes and of checkpoints, kept of each pod: no pod is ahead of the others by more.
constexpr size_t kMostTold = 256;

int64_t KeyOf(int64_t step) { return step; }
int64_t KeyOf(const std::pair<const int64_t, uint64_t>& hash) { return hash.first; }

// The newest key that all have; 0: there is none.
template <typename Keys>
int64_t NewestCommon(const std::vector<const Keys*>& of_pods) {
  for (auto entry = of_pods[0]->rbegin(); entry != of_pods[0]->rend(); ++entry) {
    const int64_t key = KeyOf(*entry);
    if (std::all_of(of_pods.begin(), of_pods.end(),
                    [key](const Keys* keys) { return keys->count(key) > 0; })) {
      return key;
    }
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

// Those that are away have no part in it. A pod that came back has told of no early step: what they
// agreed on last stands until it has told of a later one.
void Controller::Agree(Job& job) {
  std::vector<const std::set<int64_t>*> checkpoints;
  std::vector<const std::map<int64_t, uint64_t>*> hashes;
  for (size_t pod = 0; pod < job.told_by_pods.size(); ++pod) {
    if (job.away.count(static_cast<int64_t>(pod)) > 0) continue;
    checkpoints.push_back(&job.told_by_pods[pod].checkpoints);
    hashes.push_back(&job.told_by_pods[pod].hashes);
  }
  if (hashes.empty()) return;
  PodsAgreement& agreement = job.status.agreement;
  agreement.checkpoint_step = std::max(agreement.checkpoint_step, NewestCommon(checkpoints));
  const int64_t step = NewestCommon(hashes);
  if (step == 0 || step < agreement.hash_step) return;
  agreement.hash_step = step;
  agreement.hash = hashes[0]->at(step);
  agreement.hashes_differ = std::any_of(
      hashes.begin(), hashes.end(),
      [&](const std::map<int64_t, uint64_t>* of) { return of->at(step) != agreement.hash; });
}

}  // namespace toroid
