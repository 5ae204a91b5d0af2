// Runs of several pods: resumed bit for bit from the newest step that all pods have, stopped behind
// one step, refused when the pods do not belong together.
#include <atomic>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/version.h"
#include "parallel/exchange_plan.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;

class PodRunTest : public TrainingRunTest {
 protected:
  // `change` makes pod q's plan out of the common one; events: by pod.
  std::vector<Outcome> RunPods(
      const TrainingPlan& plan, const std::vector<MeshShape>& meshes,
      const std::function<void(int64_t pod, TrainingPlan& plan)>& change = nullptr,
      std::vector<TrainingEvents> events = {}) const {
    std::vector<Outcome> outcomes(meshes.size());
    events.resize(meshes.size());
    for (size_t q = 0; q < meshes.size(); ++q) {
      events[q] = Recording(std::move(events[q]), outcomes[q]);
    }
    RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
      TrainingPlan own = plan;
      own.options.mesh = meshes[size_t(pod)];
      own.options.pods.count = int64_t(meshes.size());
      own.directory = PodDirectory(plan.directory, pod, own.options.pods.count);
      if (change) change(pod, own);
      RunRank(own, events[size_t(pod)], std::move(world), outcomes[size_t(pod)], &link);
    });
    return outcomes;
  }
  static void ExpectOk(const std::vector<Outcome>& pods) {
    for (const Outcome& pod : pods) ASSERT_TRUE(pod.status.ok()) << pod.status;
  }
};

const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};

TEST_F(PodRunTest, ResumesBitForBit) {
  TrainingPlan plan = Plan({1, 1, 1}, 14);
  plan.options.dropout = 0.1;
  plan.options.noise_scale_every = 3;
  const std::vector<MeshShape> meshes = {{2, 1, 1}, {1, 1, 2}};
  plan.directory = Directory("whole");
  const std::vector<Outcome> whole = RunPods(plan, meshes);
  ExpectOk(whole);
  EXPECT_LT(whole[0].losses.at(13), whole[0].losses.at(0));
  EXPECT_EQ(whole[0].losses, whole[1].losses);
  EXPECT_THAT(whole[1].result.checkpoint, HasSubstr("whole/pod-1/checkpoints/step-00000014"));

  plan.directory = Directory("parts");
  plan.checkpoint_every = 4;
  plan.steps = 10;
  ExpectOk(RunPods(plan, meshes));
  plan.steps = 14;
  const std::vector<Outcome> rest = RunPods(plan, meshes);
  ExpectOk(rest);
  for (size_t q = 0; q < 2; ++q) {
    EXPECT_TRUE(rest[q].Notes("resumed from"));
    EXPECT_EQ(rest[q].reports.size(), 4u);
    EXPECT_EQ(rest[q].shares, whole[q].shares);
    EXPECT_EQ(rest[q].losses.at(13), whole[q].losses.at(13));
  }

  // One pod loses its newest: both go on from the one before, on a branch of its own.
  for (const char* step : {"step-00000010", "step-00000014"}) {
    for (const auto& entry :
         std::filesystem::directory_iterator(Directory("parts/pod-1/checkpoints"))) {
      if (entry.path().filename().string().find(step) == 0) {
        std::filesystem::remove_all(entry.path());
      }
    }
  }
  const std::vector<Outcome> again = RunPods(plan, meshes);
  ExpectOk(again);
  EXPECT_TRUE(again[0].Notes("not all pods have a checkpoint of its step"));
  for (size_t q = 0; q < 2; ++q) {
    EXPECT_EQ(again[q].reports.front().result.step, 12);
    EXPECT_EQ(again[q].shares, whole[q].shares);
  }
  const std::vector<Outcome> done = RunPods(plan, meshes);  // the new branch is what counts
  ExpectOk(done);
  EXPECT_EQ(done[0].reports.size(), 0u);
  EXPECT_EQ(done[0].shares, whole[0].shares);
}

TEST_F(PodRunTest, WithoutACommonCheckpointNothingBegins) {
  TrainingPlan plan = Plan({1, 1, 1}, 2);
  ExpectOk(RunPods(plan, kTwins));
  std::filesystem::remove_all(Directory("run/pod-1"));
  plan.steps = 3;
  for (const Outcome& pod : RunPods(plan, kTwins)) {
    EXPECT_EQ(pod.status.code(), absl::StatusCode::kFailedPrecondition) << pod.status;
    EXPECT_THAT(std::string(pod.status.message()), HasSubstr("pod 0: 2; pod 1: none"));
  }
}

// Substitutes for all pods of a job, without its directories, are no new job.
TEST_F(PodRunTest, WithoutWhatWasCommittedNothingBegins) {
  TrainingPlan plan = Plan({1, 1, 1}, 4);
  plan.committed_step = 6;
  plan.committed_branch = kMostBranches;
  const auto refused = [&](const std::string& offers) {
    for (const Outcome& pod : RunPods(plan, kTwins)) {
      EXPECT_EQ(pod.status.code(), absl::StatusCode::kFailedPrecondition) << pod.status;
      EXPECT_THAT(std::string(pod.status.message()), HasSubstr("has committed one of step 6"));
      EXPECT_THAT(std::string(pod.status.message()), HasSubstr(offers));
    }
  };
  refused("(pod 0: none; pod 1: none)");
  plan.committed_step = 0;
  ExpectOk(RunPods(plan, kTwins));  // control
  plan.committed_step = 6;
  refused("(pod 0: 4; pod 1: 4)");
  // The step that all have is taken, if what was committed is not lost.
  plan.committed_step = 0;
  plan.checkpoint_every = 2;
  plan.steps = 6;
  ExpectOk(RunPods(plan, kTwins));
  std::filesystem::remove_all(Directory("run/pod-1/checkpoints/step-00000006"));
  plan.committed_step = 6;
  const std::vector<Outcome> pods = RunPods(plan, kTwins);
  ExpectOk(pods);
  EXPECT_EQ(pods[0].reports.size(), 2u);
}

TEST_F(PodRunTest, OnePodsStopIsAllPods) {
  TrainingPlan plan = Plan({1, 1, 1}, 40);
  std::vector<TrainingEvents> events(2);
  std::atomic<int64_t> asked = 0;
  events[1].stop = [&] { return ++asked > 5 ? StopAsked::kRequeue : StopAsked::kNo; };
  const std::vector<Outcome> pods =
      RunPods(plan, {{1, 1, 1}, {1, 1, 2}}, nullptr, std::move(events));
  ExpectOk(pods);
  for (const Outcome& pod : pods) {
    EXPECT_EQ(pod.result.stopped, StopAsked::kRequeue);
    EXPECT_LT(pod.result.steps, 40);
    EXPECT_EQ(pod.result.steps, pods[0].result.steps);
    EXPECT_NE(pod.result.checkpoint, "");
  }
}

TEST_F(PodRunTest, PodsOfTwoRunsAreRefused) {
  TrainingPlan plan = Plan({1, 1, 1}, 3);
  plan.directory = "";
  const auto refusal = [&](const std::function<void(TrainingPlan&)>& change) {
    const std::vector<Outcome> pods = RunPods(plan, kTwins, [&](int64_t pod, TrainingPlan& own) {
      if (pod == 1) change(own);
    });
    for (const Outcome& pod : pods) {
      EXPECT_EQ(pod.status.code(), absl::StatusCode::kFailedPrecondition) << pod.status;
    }
    return std::string(pods[0].status.message());
  };
  EXPECT_THAT(refusal([](TrainingPlan& own) { own.seed = 6; }), HasSubstr("pod 1"));
  EXPECT_THAT(refusal([](TrainingPlan& own) { own.options.compute = Compute::kF64; }),
              HasSubstr("another type"));
  TrainingPlan other = plan;
  other.options.max_norm = 2;
  EXPECT_EQ(PodTerms(plan, source_->config), PodTerms(plan, source_->config));
  EXPECT_NE(PodTerms(plan, source_->config), PodTerms(other, source_->config));
  ExpectOk(RunPods(plan, kTwins));  // control
}

// Weights that are not alike are named by both hashes, as metrics.jsonl has them.
TEST_F(PodRunTest, OtherWeightsAreNamedByBothHashes) {
  TrainingPlan plan = Plan({1, 1, 1}, 2);
  plan.param_hash_every = 1;
  std::string hashes[2];
  for (size_t run = 0; run < 2; ++run) {
    plan.directory = Directory(absl::StrCat("of-", run));
    plan.options.optimizer.rate.peak = run == 0 ? 3e-3 : 1e-3;
    const std::vector<Outcome> pods = RunPods(plan, kTwins);
    ExpectOk(pods);
    hashes[run] = absl::StrFormat("%016x", *pods[run].reports.back().param_hash);
  }
  EXPECT_NE(hashes[0], hashes[1]);
  plan.steps = 3;
  const auto mixed = RunPods(plan, kTwins, [&](int64_t pod, TrainingPlan& own) {
    own.directory = Directory(absl::StrCat("of-", pod, "/pod-", pod));
  });
  for (const Outcome& pod : mixed) {
    EXPECT_EQ(pod.status.code(), absl::StatusCode::kFailedPrecondition) << pod.status;
    EXPECT_THAT(std::string(pod.status.message()),
                HasSubstr(absl::StrCat("pod 1 begins with other weights (", hashes[1],
                                       ") than pod 0 (", hashes[0], "): give all pods")));
  }
  ExpectOk(RunPods(plan, kTwins));  // control
}

// The one line that both sides get names the two values and nothing else of the job.
TEST_F(PodRunTest, TermsNameBothValues) {
  const TrainingPlan plan = Plan({1, 1, 1}, 3);
  const std::vector<std::string> ours = PodTerms(plan, source_->config);
  const auto refusal = [&](std::vector<std::string> theirs) {
    return std::string(
        CompareTerms({"job", {0, 0}, 1, ours}, {"job", {1, 0}, 1, std::move(theirs)}).message());
  };
  EXPECT_EQ(refusal(ours), "");
  std::vector<std::string> later = ours;
  ASSERT_EQ(later[0], absl::StrCat("version: ", kVersion));
  later[0] = "version: 77";
  later.back() = "other";  // of a version, other things may differ too
  EXPECT_THAT(refusal(later), testing::HasSubstr(absl::StrCat(
                                  "pod 1 rank 0 has \"version: 77\", this pod 0 rank 0 \"version: ",
                                  kVersion, "\": start all pods with the same")));
  ModelConfig model = source_->config;
  model.layers += 1;
  EXPECT_THAT(refusal(PodTerms(plan, model)),
              testing::HasSubstr(absl::StrCat(
                  "has \"model layers: ", model.layers,
                  "\", this pod 0 rank 0 \"model layers: ", source_->config.layers, "\"")));
  TrainingPlan coded = plan;
  coded.options.pods.exchange.codec = Codec::kE3m0;
  EXPECT_THAT(refusal(PodTerms(coded, source_->config)),
              testing::AllOf(HasSubstr("codec e3m0\""), HasSubstr("codec fp32\"")));
}

TEST_F(PodRunTest, PodsWithoutALinkAreRefused) {
  TrainingPlan plan = Plan({1, 1, 1}, 3);
  plan.options.pods.count = 2;
  const Outcome run = Run(plan);
  EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(run.status.message()),
              HasSubstr("mesh.pods: 2: nothing leads to the other pods"));
}

// What a step tells of the exchange: float32 gradients, each element once to the other pod, and
// what rank 0 says besides.
TEST_F(PodRunTest, CountsWhatItSends) {
  TrainingPlan plan = Plan({1, 1, 1}, 3);
  plan.directory = "";
  const std::vector<Outcome> pods = RunPods(plan, kTwins);
  ExpectOk(pods);
  int64_t elements = 0;
  for (const ParamSpec& spec : ParamTable(source_->config)) {
    if (spec.alias.empty()) elements += spec.rows * spec.cols;
  }
  const StepReport& report = pods[0].reports[2];
  ASSERT_TRUE(report.pods.has_value());
  EXPECT_EQ(report.pods->taking_part, 2);
  EXPECT_EQ(report.pods->staleness, 0);
  EXPECT_GE(report.pods->seconds_waited, 0);
  int64_t all = 0;
  for (const StepReport& step : pods[1].reports) all += step.pods->bytes_sent;
  const int64_t words = all - 3 * 4 * elements;
  EXPECT_GT(words, 0);
  EXPECT_LT(words, 3 * 100 + 200);  // cards
  EXPECT_EQ(report.result.tokens, 4 * 32);
}

// Of a pod of two ranks: what both have sent, which is what plan says of each.
TEST_F(PodRunTest, CountsWhatAllItsRanksSend) {
  TrainingPlan plan = Plan({2, 1, 1}, 3);
  plan.directory = "";
  const std::vector<MeshShape> meshes = {{2, 1, 1}, {2, 1, 1}};
  const std::vector<Outcome> pods = RunPods(plan, meshes);
  ExpectOk(pods);
  const PlannedExchange planned = {meshes, source_->config.layers, false, {}};
  // Pod 0 has had all of it when pod 1 is told its norm. The first step counts the greeting too.
  const std::vector<TurnBytes> ranks = PlanTurns(source_->config, planned, 1).at(0);
  for (const size_t step : {1, 2}) {
    const int64_t sent = pods[1].reports.at(step).pods->bytes_sent;
    EXPECT_EQ(sent, ranks[0].sent + ranks[1].sent);
    EXPECT_NEAR(double(sent), 2.0 * double(ranks[1].sent), 0.01 * double(sent));
  }
}

// What is applied late is told as late as it was, where it was applied; checkpoints between sending
// and applying, and the end of a run there, make no difference.
TEST_F(PodRunTest, TellsHowLateWhatItAppliedWas) {
  using Mode = ExchangeSpec::Mode;
  const std::map<Mode, std::vector<int64_t>> expected = {
      {Mode::kExact, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
      {Mode::kDelayed, {0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
      {Mode::kDiLoCo, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
      {Mode::kStreaming, {0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0}}};
  for (const auto& [mode, staleness] : expected) {
    TrainingPlan plan = Plan({1, 1, 1}, 5);
    ExchangeSpec& exchange = plan.options.pods.exchange;
    exchange.mode = mode;
    SCOPED_TRACE(ExchangeModeName(mode));
    exchange.every = 8;
    if (mode == Mode::kStreaming) exchange.fragments = 2, exchange.tau = 2;
    plan.directory = Directory(ExchangeModeName(mode));
    plan.checkpoint_every = 3;
    std::vector<int64_t> told;
    for (const int64_t steps : {5, 11}) {
      plan.steps = steps;
      const std::vector<Outcome> pods = RunPods(plan, kTwins);
      ExpectOk(pods);
      for (const StepReport& report : pods[1].reports) told.push_back(report.pods->staleness);
    }
    EXPECT_EQ(told, staleness);
  }
}

}  // namespace
}  // namespace toroid
