// What plan tells of the exchange between pods: its bytes are those that real runs count.
#include "parallel/exchange_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <numeric>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/io/random_model.h"
#include "parallel/exchange_layout.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;
using RankBytes = std::map<std::pair<int64_t, int64_t>, int64_t>;  // by pod and rank

constexpr char kModel[] = "random:tiny-gqa";

ExchangeSpec Spec(Mode mode, Codec codec) {
  ExchangeSpec spec;
  spec.mode = mode;
  spec.codec = codec;
  spec.every = 2;
  if (mode == Mode::kStreaming) spec.every = 4, spec.fragments = 2, spec.tau = 1, spec.alpha = 0.5;
  return spec;
}

PlannedExchange Job(const std::vector<MeshShape>& meshes, const ExchangeSpec& spec) {
  return {meshes, TestSource(kModel)->config.layers, false, spec};
}

// Payload bytes that each rank has sent in so many steps.
RankBytes Count(const std::vector<MeshShape>& meshes, const ExchangeSpec& spec, bool adafactor,
                int64_t steps) {
  RankBytes counted;
  std::mutex mutex;
  const auto source = TestSource(kModel);
  RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    TrainOptions options = Options(meshes[size_t(pod)], Compute::kF64);
    if (adafactor) options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
    options.pods = {int64_t(meshes.size()), spec};
    const int64_t rank = world->rank();
    auto trainer =
        Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, BatchOf(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
    }
    trainer->reset();  // what it posted is with the link
    const std::lock_guard<std::mutex> lock(mutex);
    counted[{pod, rank}] = link.counters().payload_sent;
  });
  return counted;
}

TEST(ExchangePlanTest, BytesAreThoseThatRunsCount) {
  for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
           {{2, 1, 1}, {2, 1, 1}}, {{1, 1, 1}, {1, 2, 1}, {1, 1, 2}}}) {
    for (const ExchangeSpec& spec :
         {Spec(Mode::kExact, Codec::kBf16), Spec(Mode::kDelayed, Codec::kInt8),
          Spec(Mode::kDiLoCo, Codec::kE3m0), Spec(Mode::kStreaming, Codec::kInt8)}) {
      if (meshes.size() == 2 && spec.mode == Mode::kDiLoCo) continue;  // as streaming
      SCOPED_TRACE(absl::StrCat(ToString(spec), ", ", meshes.size(), " pods"));
      const bool adafactor = spec.mode == Mode::kDelayed;
      PlannedExchange job = Job(meshes, spec);
      job.adafactor = adafactor;
      // From one length to another: no greeting, and delayed's first step, which applies nothing.
      const int64_t round = StepsOfRound(spec);
      const RankBytes shorter = Count(meshes, spec, adafactor, 2 * round);
      const RankBytes longer = Count(meshes, spec, adafactor, 3 * round);
      int64_t sent = 0, received = 0;
      for (size_t pod = 0; pod < meshes.size(); ++pod) {
        const auto turns = PlanTurns(TestSource(kModel)->config, job, int64_t(pod));
        ASSERT_EQ(turns.size(), spec.mode == Mode::kStreaming ? 2u : 1u);
        for (int64_t rank = 0; rank < meshes[pod].size(); ++rank) {
          int64_t planned = 0;
          for (const auto& turn : turns) planned += turn[size_t(rank)].sent;
          for (const auto& turn : turns) received += turn[size_t(rank)].received;
          sent += planned;
          const std::pair<int64_t, int64_t> key(pod, rank);
          EXPECT_EQ(planned, longer.at(key) - shorter.at(key)) << "pod " << pod << " rank " << rank;
          EXPECT_GT(planned, 0);
        }
      }
      EXPECT_EQ(sent, received);  // what pods send is what pods receive
    }
  }
}

// Layers that are looked at one by one, pairs of ranks too, against the short way of twins.
TEST(ExchangePlanTest, TwinsAreAsTheLayoutHasThem) {
  for (const char* name : {"tiny-gqa", "tiny-mqa", "tiny-qwen2"}) {
    const auto shape = RandomShape(name);
    ASSERT_TRUE(shape.ok()) << shape.status();
    for (const MeshShape& mesh : {MeshShape{1, 1, 1}, MeshShape{2, 3, 1}, MeshShape{1, 2, 2}}) {
      for (const Codec codec : kCodecs) {
        ExchangeSpec spec = Spec(Mode::kStreaming, codec);
        spec.fragments = 1;
        const PlannedExchange job = {{mesh, mesh}, shape->layers, false, spec};
        const auto turns = PlanTurns(*shape, job, 1);
        for (int64_t rank = 0; rank < mesh.size(); ++rank) {
          const ExchangeLayout layout(*shape, shape->layers, mesh, rank, mesh);
          int64_t sent = rank == 0 ? 8 : 0;  // its word
          for (int64_t g = 0; g < layout.groups(); ++g) {
            for (const ExchangePart& part : layout.sends(g))
              sent += PayloadBytes(part, true, codec);
          }
          EXPECT_EQ(turns[0][size_t(rank)].sent, sent) << name << " " << ToString(mesh) << rank;
        }
      }
    }
  }
}

// Rounds of 100 steps of codes against bfloat16 gradients each step.
TEST(ExchangePlanTest, LateCodesAreHundredsOfTimesFewer) {
  const auto bytes = [](ExchangeSpec spec) {
    spec.every = 100;
    return CostOf(TestSource(kModel)->config, Job({{1, 1, 1}, {1, 1, 1}}, spec), {}, {}).step_bytes;
  };
  const double gradients = bytes(Spec(Mode::kExact, Codec::kBf16));
  EXPECT_GE(gradients, 190 * bytes(Spec(Mode::kStreaming, Codec::kInt8)));
  EXPECT_LT(gradients, 200 * bytes(Spec(Mode::kStreaming, Codec::kInt8)));
  EXPECT_GE(gradients, 370 * bytes(Spec(Mode::kStreaming, Codec::kE3m0)));
}

// A tiny model's numbers, a link on which its float32 take a second.
class ExchangeCostTest : public ::testing::Test {
 protected:
  ExchangeCostTest() {
    const auto turns = PlanTurns(config_, Job(kTwins, Spec(Mode::kExact, Codec::kFp32)), 0);
    const TurnBytes& turn = turns[0][0];
    link_.bytes_per_s = double(turn.line);
    first_ = double(turn.first) / link_.bytes_per_s;
    // Of two layers the lower one's, and all of the embedding's: it isn't said how many tokens.
    last_ = (1 - first_ + double(turn.last) / link_.bytes_per_s) / 2;
  }
  ExchangeCost Cost(ExchangeSpec spec, double step, double latency = 0) {
    link_.latency_s = latency;
    return CostOf(config_, Job(kTwins, spec), link_, {step, step * 2 / 3});
  }
  const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};
  const ModelConfig config_ = TestSource(kModel)->config;
  PodLinkSpeed link_;
  double first_ = 0, last_ = 0;
};

TEST_F(ExchangeCostTest, ExposedIsWhatComputationDoesNotCover) {
  const ExchangeSpec exact = Spec(Mode::kExact, Codec::kFp32);
  ASSERT_GT(last_, 0.01);
  ASSERT_LT(last_, 0.9);
  EXPECT_NEAR(Cost(exact, 1.2).exposed_s, std::max(1 - 0.8, last_), 1e-9);
  EXPECT_NEAR(Cost(exact, 0.15).exposed_s, 1 - 0.1, 1e-9);
  EXPECT_NEAR(Cost(exact, 0.81).exposed_s, 1 - first_ - 0.54 / 2, 1e-9);  // from the top layer on
  EXPECT_NEAR(Cost(exact, 30).exposed_s, last_, 1e-9);  // what becomes whole at the end
  EXPECT_NEAR(Cost(exact, 30, 0.5).exposed_s, last_ + 1, 1e-9);
  EXPECT_NEAR(Cost(exact, 30).speed_up, 2 * 30 / (30 + last_), 1e-9);
  const ExchangeSpec delayed = Spec(Mode::kDelayed, Codec::kFp32);
  EXPECT_NEAR(Cost(delayed, 0.75).exposed_s, 0.25, 1e-4);
  EXPECT_NEAR(Cost(delayed, 1.5).exposed_s, 0, 1e-9);
  EXPECT_EQ(Cost(delayed, 1.5).speed_up, 2);
  const ExchangeSpec diloco = Spec(Mode::kDiLoCo, Codec::kFp32);
  EXPECT_NEAR(Cost(diloco, 1, 0.5).exposed_s, 1.5 / 2, 1e-3);
  EXPECT_NEAR(double(*Cost(diloco, 1, 0.5).least_every), 1.5 / kHidden, 1);
  ExchangeSpec streaming = Spec(Mode::kStreaming, Codec::kFp32);
  EXPECT_EQ(Cost(streaming, 1).exposed_s, 0);  // half of the layers each time
  streaming.tau = 0;
  EXPECT_NEAR(Cost(streaming, 1).exposed_s, 0.25, 1e-3);
  EXPECT_EQ(*Cost(streaming, 1).least_tau, 1);
  EXPECT_EQ(*Cost(streaming, 1).least_every, 4);
}

// Where a pod is one rank, rows of the embedding that no token is of leave with the head's
// gradient.
TEST(ExchangePlanTest, RowsThatNoTokenIsOfAreNotExposed) {
  const auto shape = RandomShape("smollm2-135m");
  ASSERT_TRUE(shape.ok()) << shape.status();
  ASSERT_TRUE(shape->tied_embeddings);
  const StepSeconds seconds = {27, 18, 2};
  const auto cost = [&](const MeshShape& mesh, Codec codec, int64_t tokens) {
    const PlannedExchange job = {
        {mesh, mesh}, shape->layers, false, Spec(Mode::kExact, codec), tokens};
    const double needed = CostOf(*shape, job, {}, seconds).needed_bytes_per_s;
    return CostOf(*shape, job, {1.3 * needed, 0}, seconds);
  };
  const ExchangeCost own = cost({1, 1, 1}, Codec::kBf16, 2048);
  EXPECT_GT(own.speed_up / 2, 0.96);
  const double table = double(shape->vocab * shape->dim) * 2, rate = 1.3 * own.needed_bytes_per_s;
  for (const auto& [mesh, codec, tokens] :
       {std::tuple(MeshShape{1, 1, 1}, Codec::kBf16, int64_t{0}),  // any row may be touched
        {MeshShape{1, 1, 1}, Codec::kInt8, int64_t{2048}},         // scales
        {MeshShape{1, 2, 1}, Codec::kBf16, int64_t{2048}}}) {      // sums over ranks are owed
    const ExchangeCost other = cost(mesh, codec, tokens);
    EXPECT_LT(other.speed_up / 2, 0.91);
    EXPECT_GT(other.exposed_s, own.exposed_s + 0.9 * table / rate);
  }
  // More tokens, more rows.
  EXPECT_GT(cost({1, 1, 1}, Codec::kBf16, 8192).exposed_s, own.exposed_s);
  EXPECT_EQ(cost({1, 1, 1}, Codec::kBf16, 8192).turn_bytes, own.turn_bytes);
}

// What is advised hides the exchange, and nothing less of its kind does.
TEST_F(ExchangeCostTest, TheChangeThatHides) {
  PlannedExchange job = Job(kTwins, Spec(Mode::kExact, Codec::kFp32));
  const auto hidden = [&](double step) {
    return HiddenExchange(config_, job, link_, {step, step * 2 / 3});
  };
  link_.latency_s = 0;
  const auto easy = hidden(1000);
  ASSERT_TRUE(easy.has_value());
  EXPECT_EQ(easy->spec, job.spec);  // nothing is to be changed
  const auto coarse = hidden(6);
  ASSERT_TRUE(coarse.has_value());
  EXPECT_EQ(coarse->spec.mode, Mode::kExact);
  EXPECT_EQ(coarse->spec.codec, Codec::kInt8);
  link_.latency_s = 0.1;  // which no codec makes shorter
  const auto delayed = hidden(1.2);
  ASSERT_TRUE(delayed.has_value());
  EXPECT_EQ(delayed->spec.mode, Mode::kDelayed);
  EXPECT_EQ(delayed->spec.codec, Codec::kFp32);
  link_.latency_s = 0;
  const auto slow = hidden(0.1);
  ASSERT_TRUE(slow.has_value());
  ASSERT_EQ(slow->spec.mode, Mode::kStreaming) << ToString(slow->spec);
  EXPECT_TRUE(Validate(slow->spec).ok());
  EXPECT_LE(slow->exposed_s, kHidden * 0.1);
  EXPECT_GT(slow->speed_up, 1.94);
  ExchangeSpec less = slow->spec;
  --less.tau;
  EXPECT_EQ(Cost(slow->spec, 0.1).exposed_s, 0);
  EXPECT_GT(Cost(less, 0.1).exposed_s, 0);
  job.spec = Spec(Mode::kStreaming, Codec::kE3m0);
  EXPECT_FALSE(hidden(1e-6).has_value());  // a link that nothing helps
}

}  // namespace
}  // namespace toroid
