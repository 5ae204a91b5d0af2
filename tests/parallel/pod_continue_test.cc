// Policy `continue`: a pod is lost while others train, and they go on, all with the same shares.
#include <atomic>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "core/io/merge_log.h"
#include "parallel/merge_replay.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;
using Mode = ExchangeSpec::Mode;

// What the controller says of who takes part.
class Views {
 public:
  explicit Views(int64_t pods) {
    for (int64_t q = 0; q < pods; ++q) now_.members.push_back(q);
    now_.number = 7;
  }
  std::optional<MembershipView> Now() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }
  void Lose(int64_t pod) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase(now_.members, pod);
    ++now_.number;
  }

 private:
  mutable std::mutex mutex_;
  MembershipView now_;
};

class PodContinueTest : public TrainingRunTest {
 protected:
  PodContinueTest() {
    plan_ = Plan({1, 1, 1}, 16);
    plan_.data.batch_tokens.stages = {{0, 8 * 32}};
    plan_.options.pods.policy = PodsOptions::Policy::kContinue;
    plan_.options.pods.keep_contributions = true;
    plan_.param_hash_every = 1;
  }

  void Use(Mode mode) {
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

  // When `pod` has done `step` steps its lines to `cut` break; it is lost while it waits for what
  // does not come any more, after so many looks at the clock.
  struct Loss {
    int64_t pod = 0, step = 0;
    std::vector<int64_t> cut;
    int64_t looks = 2;
  };

  std::vector<Outcome> RunPods(const std::vector<MeshShape>& meshes,
                               const std::vector<Loss>& losses) {
    const int64_t pods = int64_t(meshes.size());
    std::vector<Outcome> outcomes(meshes.size());
    Views views(pods);
    InProcessPodNetwork* network = nullptr;
    const auto ranks = [&](int64_t pod) { return meshes[size_t(pod)].size(); };
    const auto cut = [&](int64_t a, int64_t b) {
      for (int64_t i = 0; i < ranks(a); ++i) {
        for (int64_t j = 0; j < ranks(b); ++j) network->Cut({a, i}, {b, j});
      }
    };
    const auto lose = [&](int64_t pod) {
      for (int64_t i = 0; i < ranks(pod); ++i) network->Drop({pod, i});
      views.Lose(pod);
    };
    std::vector<TrainingEvents> events(meshes.size());
    std::vector<std::atomic<int64_t>> looks(meshes.size());
    for (auto& left : looks) left = INT64_MAX;
    for (int64_t q = 0; q < pods; ++q) {
      TrainingEvents& own = events[size_t(q)];
      own.view = [&views] { return views.Now(); };
      own.on_step = [&, q](const StepReport& report) {
        for (const Loss& loss : losses) {
          if (loss.pod != q || loss.step != report.result.step + 1) continue;
          for (const int64_t other : loss.cut) cut(q, other);
          looks[size_t(q)] = loss.looks;
          if (loss.looks == 0) lose(q);
        }
      };
      own.stop = [&, q] {
        if (looks[size_t(q)] != INT64_MAX && --looks[size_t(q)] == 0) lose(q);
        return StopAsked::kNo;
      };
      events[size_t(q)] = Recording(std::move(own), outcomes[size_t(q)]);
    }
    RunOnPods(
        meshes,
        [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
          TrainingPlan plan = plan_;
          plan.options.mesh = meshes[size_t(pod)];
          plan.options.pods.count = pods;
          plan.directory = PodDirectory(plan_.directory, pod, pods);
          RunRank(plan, events[size_t(pod)], std::move(world), outcomes[size_t(pod)], &link);
        },
        std::chrono::seconds(120), [&](InProcessPodNetwork& made) { network = &made; });
    return outcomes;
  }

  std::vector<MergeRecord> LogOf(int64_t pod) const {
    const auto log = ReadMergeLog(PosixFiles(), absl::StrCat(OfPod(pod), "/merges.log"));
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? log->records : std::vector<MergeRecord>();
  }
  std::string OfPod(int64_t pod) const { return PodDirectory(plan_.directory, pod, 2); }

  // Of what all pods have alike, after each step.
  static std::vector<uint64_t> Hashes(const Outcome& pod) {
    std::vector<uint64_t> hashes;
    for (const StepReport& report : pod.reports) {
      hashes.push_back(report.pods->outer_hash.value_or(report.param_hash.value_or(0)));
    }
    return hashes;
  }

  // Those that are left did all steps, alike, and what they logged can be made again.
  void ExpectAlike(const std::vector<Outcome>& pods, const std::vector<int64_t>& left) const {
    for (const int64_t q : left) {
      SCOPED_TRACE(absl::StrCat("pod ", q));
      const Outcome& pod = pods[size_t(q)];
      ASSERT_TRUE(pod.status.ok()) << pod.status;
      EXPECT_EQ(pod.result.steps, plan_.steps);
      EXPECT_EQ(Hashes(pod), Hashes(pods[size_t(left[0])]));
      EXPECT_EQ(pod.reports.back().pods->taking_part, int64_t(left.size()));
      ReplayOptions options;
      options.param_hashes = ParamHashesOf({pod});
      const auto replayed = ReplayMerges(PosixFiles(), OfPod(q), options);
      ASSERT_TRUE(replayed.ok()) << replayed.status();
      EXPECT_EQ(replayed->differs, "");
      if (replayed->weights) {
        EXPECT_EQ(replayed->weights->compared, plan_.steps);
      }
      const auto compared = CompareMergeLogs(PosixFiles(), {OfPod(left[0]), OfPod(q)});
      ASSERT_TRUE(compared.ok()) << compared.status();
      EXPECT_EQ(*compared, "");
      const std::vector<MergeRecord> log = LogOf(q), first = LogOf(left[0]);
      ASSERT_EQ(log.size(), first.size());
      for (size_t i = 0; i < log.size(); ++i) {
        EXPECT_EQ(log[i].inputs, first[i].inputs) << "merge " << i;
        EXPECT_EQ(log[i].result, first[i].result) << "merge " << i;
        EXPECT_TRUE(i == 0 || log[i].step > log[i - 1].step);  // none is made twice
      }
    }
  }

  TrainingPlan plan_;
};

const std::vector<MeshShape> kThree = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}};

// One survivor has the lost pod's last share, the other has not: neither may take it.
TEST_F(PodContinueTest, ALastShareThatNotAllHaveCountsForNobody) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    plan_.directory = Directory(ExchangeModeName(mode));
    const int64_t looks = plan_.options.pods.exchange.gradients() ? 2 : 3;
    const std::vector<Outcome> pods = RunPods(kThree, {{2, 6, {1}, looks}});
    EXPECT_TRUE(absl::IsUnavailable(pods[2].status)) << pods[2].status;
    ExpectAlike(pods, {0, 1});
    const std::vector<MergeRecord> log = LogOf(0);
    EXPECT_EQ(log.front().inputs.size(), 3u);
    EXPECT_EQ(log.front().view, 7u);
    EXPECT_EQ(log.back().inputs.size(), 2u);
    EXPECT_EQ(log.back().view, 8u);
    for (const MergeRecord& record : log) {
      EXPECT_TRUE(record.step <= 6 || record.inputs.size() == 2u) << record.step;
    }
  }
}

TEST_F(PodContinueTest, TheFirstPodCanBeLostAndThenAnother) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    plan_.directory = Directory(ExchangeModeName(mode));
    const std::vector<MeshShape> meshes = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}};
    const std::vector<Outcome> pods = RunPods(meshes, {{0, 3, {2}}, {3, 9, {1, 0}}});
    ExpectAlike(pods, {1, 2});
    EXPECT_EQ(LogOf(1).back().inputs.size(), 2u);
  }
}

TEST_F(PodContinueTest, OneIsLeft) {
  Use(Mode::kExact);
  const std::vector<Outcome> pods = RunPods({{1, 1, 1}, {1, 1, 1}}, {{0, 5, {1}}});
  ExpectAlike(pods, {1});
}

// Unlike meshes, whose norms round otherwise, too: all take one pod's, which may be the lost one's.
TEST_F(PodContinueTest, PodsOfSeveralRanks) {
  Use(Mode::kStreaming);
  const std::vector<MeshShape> meshes = {{1, 1, 2}, {2, 1, 1}, {1, 1, 1}};
  ExpectAlike(RunPods(meshes, {{2, 6, {1}}}), {0, 1});
  Use(Mode::kExact);
  plan_.directory = Directory("alike");
  ExpectAlike(RunPods({{1, 1, 2}, {1, 1, 2}, {1, 1, 2}}, {{2, 6, {1}}}), {0, 1});
  for (const Mode mode : {Mode::kExact, Mode::kDelayed}) {
    for (const int64_t lost : {0, 2}) {
      SCOPED_TRACE(absl::StrCat(ExchangeModeName(mode), " without pod ", lost));
      Use(mode);
      plan_.options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;  // it takes norms of weights
      plan_.directory = Directory(absl::StrCat("unlike ", ExchangeModeName(mode), lost));
      const std::vector<Outcome> pods = RunPods(meshes, {{lost, 6, {1}}});
      if (lost == 2) ExpectAlike(pods, {0, 1});
      if (lost == 0) ExpectAlike(pods, {1, 2});
    }
  }
}

// Wherever it is when it is lost.
using PodContinueSlow = PodContinueTest;
TEST_F(PodContinueSlow, LostAtAnyTime) {
  for (int64_t i = 0; i < 24; ++i) {
    SCOPED_TRACE(i);
    Use(Mode(i % 4));
    plan_.directory = Directory(absl::StrCat("run ", i));
    Loss loss{i % 3, 2 + i / 3, {}, i % 5};  // early enough to be missed in the last merge
    if (i % 2 == 0) loss.cut = {(i + 1) % 3};
    const std::vector<Outcome> pods = RunPods(kThree, {loss});
    ExpectAlike(pods, {std::min((i + 1) % 3, (i + 2) % 3), std::max((i + 1) % 3, (i + 2) % 3)});
  }
}

}  // namespace
}  // namespace toroid
