// The late modes of exchange between pods, by what they must be equal to: delayed gradients,
// DiLoCo, streaming.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/engine_on_mesh.h"
#include "tests/support/pod_identities.h"
#include "tests/support/train_on_pods.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

constexpr char kModel[] = "random:tiny-gqa";
const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};

class OuterIdentityTest : public ::testing::TestWithParam<PodIdentityCase> {};

TEST_P(OuterIdentityTest, Holds) { GetParam().run(NewInProcessNetwork); }

INSTANTIATE_TEST_SUITE_P(InProcess, OuterIdentityTest, ::testing::ValuesIn(OuterIdentities()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(PodModesTest, DiLoCoAndStreamingLearn) {
  ExchangeSpec streaming = ExchangeOf(Mode::kStreaming, 4, Codec::kInt8);
  streaming.fragments = 2, streaming.tau = 1, streaming.alpha = 0.5, streaming.outer_rate = 0.4;
  for (const ExchangeSpec& spec : {ExchangeOf(Mode::kDiLoCo, 5), streaming}) {
    SCOPED_TRACE(ToString(spec));
    const std::vector<PodCurve> pods =
        TrainOnPods(NewInProcessNetwork, kModel, Float64(spec), {{1, 1, 1}, {1, 1, 2}}, 20);
    EXPECT_LT(pods[0].losses.back(), pods[0].losses.front() - 0.2);
    const bool round = spec.mode == Mode::kDiLoCo;
    EXPECT_EQ(pods[0].hashes.back() == pods[1].hashes.back(), round);
    EXPECT_NE(pods[0].hashes[17], pods[1].hashes[17]);
  }
}

// Bytes of one round are those of all elements once, scales included, and the cards; two thirds of
// DiLoCo's steps send nothing at all.
TEST(PodModesTest, BytesAreTheFormulas) {
  int64_t elements = 0, blocks = 0;
  for (const ParamSpec& spec : ParamTable(TestSource("random:tiny-gqa")->config)) {
    if (!spec.alias.empty()) continue;
    elements += spec.rows * spec.cols;
    blocks += (spec.rows * spec.cols + 63) / 64;
  }
  const auto bytes = [&](const ExchangeSpec& spec, int64_t steps) {
    return TrainOnPods(NewInProcessNetwork, kModel, Float64(spec), kTwins, steps)[0].bytes_sent;
  };
  for (const Codec codec : kCodecs) {
    SCOPED_TRACE(CodecName(codec));
    const int64_t once = CodeBytes(codec, elements) + (HasScales(codec) ? 2 * blocks : 0);
    // From three rounds to four: no greeting.
    const ExchangeSpec diloco = ExchangeOf(Mode::kDiLoCo, 3, codec);
    EXPECT_EQ(bytes(diloco, 12) - bytes(diloco, 9), once + 8);
    EXPECT_EQ(bytes(diloco, 11), bytes(diloco, 9));
  }
}

// What a rank accounts for is what `plan` foresees, and DiLoCo's outer state shows in it.
TEST(PodModesTest, TheExchangesMemoryIsForeseen) {
  const auto source = TestSource("random:tiny-gqa");
  std::vector<int64_t> accounted;
  for (const ExchangeSpec& spec :
       {ExchangeOf(Mode::kExact), ExchangeOf(Mode::kDiLoCo, 3, Codec::kInt8)}) {
    RunOnPods(kTwins, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
      TrainOptions options = Options({1, 1, 1}, Compute::kF64);
      options.pods = {2, spec};
      auto trainer =
          Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      if (pod != 0) return;
      const auto foreseen = Trainer::Foresee(0, source, options, {{33}, {33}});
      ASSERT_TRUE(foreseen.ok()) << foreseen.status();
      EXPECT_EQ(foreseen->communicator, (*trainer)->memory().communicator);
      options.pods.count = 1;
      const auto alone = Trainer::Foresee(0, source, options, {{33}});
      ASSERT_TRUE(alone.ok()) << alone.status();
      EXPECT_EQ(alone->activations, foreseen->activations);  // of one's own packs
      accounted.push_back(foreseen->communicator - alone->communicator);
      const int64_t copy = (*trainer)->store().state_bytes();
      EXPECT_GT(accounted.back(), accounted.size() == 1 ? copy : 2 * copy);
    });
  }
}

// --- runs that are resumed
// -------------------------------------------------------------------------

class PodModesRunTest : public TrainingRunTest {
 protected:
  std::vector<Outcome> RunPods(const TrainingPlan& plan, const std::vector<MeshShape>& meshes) {
    std::vector<Outcome> outcomes(meshes.size());
    std::vector<TrainingEvents> events;
    for (Outcome& outcome : outcomes) events.push_back(Recording({}, outcome));
    RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
      TrainingPlan own = plan;
      own.options.mesh = meshes[size_t(pod)];
      own.options.pods.count = int64_t(meshes.size());
      own.directory = PodDirectory(plan.directory, pod, own.options.pods.count);
      RunRank(own, events[size_t(pod)], std::move(world), outcomes[size_t(pod)], &link);
    });
    return outcomes;
  }
};

TEST_F(PodModesRunTest, ResumeBitForBitInEveryMode) {
  ExchangeSpec streaming = ExchangeOf(Mode::kStreaming, 6, Codec::kE3m0);
  streaming.fragments = 2, streaming.tau = 2, streaming.alpha = 0.5;
  streaming.error_feedback = true;
  ExchangeSpec exact = ExchangeOf(Mode::kExact, 1, Codec::kInt8);
  exact.error_feedback = true;
  for (const ExchangeSpec& spec : {exact, ExchangeOf(Mode::kDelayed, 1, Codec::kBf16),
                                   ExchangeOf(Mode::kDiLoCo, 4, Codec::kFp32), streaming}) {
    SCOPED_TRACE(ToString(spec));
    const std::string name = ExchangeModeName(spec.mode);
    TrainingPlan plan = Plan({1, 1, 1}, 13);
    plan.options.pods.exchange = spec;
    plan.checkpoint_every = 5;
    const std::vector<MeshShape> meshes = {{2, 1, 1}, {1, 1, 1}};
    plan.directory = Directory(name + "-whole");
    const std::vector<Outcome> whole = RunPods(plan, meshes);
    for (const Outcome& pod : whole) ASSERT_TRUE(pod.status.ok()) << pod.status;
    plan.directory = Directory(name + "-parts");
    for (const int64_t steps : {4, 10, 13}) {  // a fragment is on its way at 4 and 10
      plan.steps = steps;
      const std::vector<Outcome> part = RunPods(plan, meshes);
      for (size_t q = 0; q < 2; ++q) {
        ASSERT_TRUE(part[q].status.ok()) << part[q].status;
        if (steps == 13) {
          EXPECT_EQ(part[q].shares, whole[q].shares) << q;
        }
      }
    }
    if (spec.mode == Mode::kDiLoCo) {  // another exchange is another run
      plan.steps = 15;
      plan.options.pods.exchange.every = 5;
      for (const Outcome& pod : RunPods(plan, meshes)) {
        EXPECT_EQ(pod.status.code(), absl::StatusCode::kFailedPrecondition) << pod.status;
        EXPECT_THAT(std::string(pod.status.message()), testing::HasSubstr("diloco every 4"));
      }
    }
  }
}

}  // namespace
}  // namespace toroid
