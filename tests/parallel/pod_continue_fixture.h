// Runs of training on pods of threads with policy `continue`: the plan, who says which pods take
// part, and what is left of a run: merges alike, and made again from what was kept.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/io/merge_log.h"
#include "parallel/in_process_pod_link.h"
#include "parallel/merge_replay.h"
#include "tests/support/training_runs.h"

namespace toroid {

using testing::HasSubstr;
using Mode = ExchangeSpec::Mode;

// What the controller says of who takes part.
class Views {
 public:
  // launch: of each; 0: none is launched again.
  explicit Views(int64_t pods, uint64_t launch = 1) {
    for (int64_t q = 0; q < pods; ++q) launches_[q] = launch;
  }
  std::optional<MembershipView> Now() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    MembershipView view{number_, {}, {}};
    for (const auto& [pod, launch] : launches_) {
      view.members.push_back(pod);
      view.launches.push_back(launch);
    }
    return view;
  }
  void Lose(int64_t pod) {
    const std::lock_guard<std::mutex> lock(mutex_);
    launches_.erase(pod);
    ++number_;
  }
  void Return(int64_t pod, uint64_t launch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    launches_[pod] = launch;
    ++number_;
  }
  bool Has(int64_t pod, uint64_t launch) const { return Now()->LaunchOf(pod) >= launch; }

 private:
  mutable std::mutex mutex_;
  uint64_t number_ = 7;
  std::map<int64_t, uint64_t> launches_;
};

inline const std::vector<MeshShape> kThree = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}};

class PodsGoOnTest : public TrainingRunTest {
 protected:
  explicit PodsGoOnTest(int64_t steps) {
    plan_ = Plan({1, 1, 1}, steps);
    plan_.data.batch_tokens.stages = {{0, 8 * 32}};
    plan_.options.pods.policy = PodsOptions::Policy::kContinue;
    plan_.options.pods.keep_contributions = true;
    plan_.param_hash_every = 1;
  }

  void Use(Mode mode) {
    plan_.directory = Directory(ExchangeModeName(mode));
    ExchangeSpec& spec = plan_.options.pods.exchange;
    spec = ExchangeSpec();
    spec.mode = mode;
    if (spec.gradients()) return;
    spec.every = 4;
    spec.codec = Codec::kInt8;
    if (mode != Mode::kStreaming) return;
    spec.fragments = 2;
    spec.tau = 1;
    spec.alpha = 0.5;
  }

  // pod: of those on `meshes`
  TrainingPlan PlanOf(int64_t pod, const std::vector<MeshShape>& meshes) const {
    TrainingPlan plan = plan_;
    plan.options.mesh = meshes[size_t(pod)];
    plan.options.pods.count = int64_t(meshes.size());
    plan.directory = OfPod(pod);
    return plan;
  }

  std::string OfPod(int64_t pod) const { return PodDirectory(plan_.directory, pod, 2); }
  std::vector<MergeRecord> LogOf(int64_t pod) const {
    const auto log = ReadMergeLog(PosixFiles(), absl::StrCat(OfPod(pod), "/merges.log"));
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? log->records : std::vector<MergeRecord>();
  }

  // Of what all pods have alike, after each step.
  static std::map<int64_t, uint64_t> Hashes(const Outcome& pod) {
    std::map<int64_t, uint64_t> hashes;
    for (const StepReport& report : pod.reports) {
      hashes[report.result.step] = report.pods->outer_hash.value_or(report.param_hash.value_or(0));
    }
    return hashes;
  }

  // What a pod logged in these launches can be made again, to the weights that they told of.
  ReplayedMerges Replayed(int64_t pod, const std::vector<Outcome>& launches) const {
    ReplayOptions options;
    options.param_hashes = ParamHashesOf(launches);
    const auto replayed = ReplayMerges(PosixFiles(), OfPod(pod), options);
    EXPECT_TRUE(replayed.ok()) << replayed.status();
    if (!replayed.ok()) return {};
    EXPECT_EQ(replayed->differs, "");
    EXPECT_EQ(replayed->replayed, int64_t(LogOf(pod).size()));
    return *replayed;
  }
  void ExpectLogsAlike(const std::vector<int64_t>& pods) const {
    std::vector<std::string> directories;
    for (const int64_t pod : pods) directories.push_back(OfPod(pod));
    const auto compared = CompareMergeLogs(PosixFiles(), directories);
    ASSERT_TRUE(compared.ok()) << compared.status();
    EXPECT_EQ(*compared, "");
  }

  TrainingPlan plan_;
};

}  // namespace toroid
