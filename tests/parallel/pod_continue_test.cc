// Policy `continue`: a pod is lost while others train, and they go on, all with the same shares.
#include <atomic>

#include "tests/parallel/pod_continue_fixture.h"
#include "tests/support/run_on_pods.h"

namespace toroid {
namespace {

class PodContinueTest : public PodsGoOnTest {
 protected:
  PodContinueTest() : PodsGoOnTest(16) {}

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
    Views views(pods, /*launch=*/0);
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
          RunRank(PlanOf(pod, meshes), events[size_t(pod)], std::move(world), outcomes[size_t(pod)],
                  &link);
        },
        std::chrono::seconds(120), [&](InProcessPodNetwork& made) { network = &made; });
    return outcomes;
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
      const ReplayedMerges replayed = Replayed(q, {pod});
      if (replayed.weights) {
        EXPECT_EQ(replayed.weights->compared, plan_.steps);
      }
      ExpectLogsAlike({left[0], q});
      const std::vector<MergeRecord> log = LogOf(q), first = LogOf(left[0]);
      ASSERT_EQ(log.size(), first.size());
      for (size_t i = 0; i < log.size(); ++i) {
        EXPECT_EQ(log[i].inputs, first[i].inputs) << "merge " << i;
        EXPECT_EQ(log[i].result, first[i].result) << "merge " << i;
        EXPECT_TRUE(i == 0 || log[i].step > log[i - 1].step);  // none is made twice
      }
    }
  }
};

// One survivor has the lost pod's last share, the other has not: neither may take it.
TEST_F(PodContinueTest, ALastShareThatNotAllHaveCountsForNobody) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
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
