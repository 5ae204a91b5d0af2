// The late modes of exchange between pods, by what they must be equal to: delayed gradients,
// DiLoCo, streaming.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "parallel/outer_exchange.h"
#include "parallel/param_hash.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_curves.h"
#include "tests/support/training_runs.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;
using Mode = ExchangeSpec::Mode;

const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};

ExchangeSpec Spec(Mode mode, int64_t every = 1, Codec codec = Codec::kFp64) {
  ExchangeSpec spec;
  spec.mode = mode;
  spec.every = every;
  spec.codec = codec;
  return spec;
}

// --- outer exchange by itself: a quadratic bowl instead of a model
// --------------------------------

// The gradient of pod q's bowl, whose bottom moves with the step.
double Bowl(double w, int64_t pod, int64_t step) { return w - 0.1 * double(3 * pod + step % 5); }
int64_t LabelsOf(int64_t pod, int64_t step) { return 3 + 2 * pod + step % 2; }
constexpr double kEta = 0.25;

// This rank's weights, without pads.
std::vector<double> WeightsOf(const ParamStore& store) {
  std::vector<double> all;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const ParamPiece& piece : store.pieces(g)) {
      const Tensor w = store.Stored(Kind::kWeights, g, piece);
      all.insert(all.end(), w.as<double>(), w.as<double>() + w.rows());
    }
  }
  return all;
}

struct BowlRun {
  std::map<int64_t, std::vector<std::vector<double>>> weights;  // by pod, after each step; rank 0
  std::map<int64_t, std::vector<uint64_t>> hashes, outer;       // of all ranks
};

// SGD by kEta on each pod, with the exchange after each step. codec FP64.
BowlRun RollDown(const std::vector<MeshShape>& meshes, const ExchangeSpec& spec, int64_t steps) {
  BowlRun run;
  std::mutex mutex;
  RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    Mesh mesh(std::move(world), meshes[size_t(pod)]);
    const ModelConfig config = TestSource("random:tiny-gqa")->config;
    TrainingStore filled(mesh, config, DType::kF64);
    filled.Fill(1);
    ParamStore& store = *filled;
    const auto swap = PodSwap::Create(link, int64_t(meshes.size()), config, config.layers, store,
                                      {spec, 5, 1}, {});
    ASSERT_TRUE(swap.ok()) << swap.status();
    OuterExchange exchange(**swap);
    for (int64_t step = 0; step < steps; ++step) {
      exchange.Begin(step);
      exchange.FinishReading();
      for (int64_t g = 0; g < store.groups().count(); ++g) {
        for (const ParamPiece& piece : store.pieces(g)) {
          double* w = store.Stored(Kind::kWeights, g, piece).as<double>();
          for (int64_t i = 0; i < piece.count; ++i) w[i] -= kEta * Bowl(w[i], pod, step);
        }
      }
      const absl::Status swapped = exchange.After(step + 1, LabelsOf(pod, step), 0);
      ASSERT_TRUE(swapped.ok()) << swapped;
      const uint64_t hash = ParamHash(store), outer = ParamHash(store, exchange.outer_weights());
      if (mesh.rank() != 0) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      run.weights[pod].push_back(WeightsOf(store));
      run.hashes[pod].push_back(hash);
      run.outer[pod].push_back(outer);
    }
  });
  return run;
}

// The same by one who sees all, with the mean gradient.
std::vector<double> RollAlone(int64_t pods, int64_t steps) {
  std::vector<double> w;
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    const ModelConfig config = TestSource("random:tiny-gqa")->config;
    TrainingStore filled(mesh, config, DType::kF64);
    filled.Fill(1);
    w = WeightsOf(*filled);
  });
  for (int64_t step = 0; step < steps; ++step) {
    for (double& x : w) {
      double sum = 0, labels = 0;
      for (int64_t q = 0; q < pods; ++q) {
        sum += double(LabelsOf(q, step)) * Bowl(x, q, step);
        labels += double(LabelsOf(q, step));
      }
      x -= kEta * (pods == 1 ? Bowl(x, 0, step) : sum / labels);
    }
  }
  return w;
}

double Furthest(const std::vector<double>& a, const std::vector<double>& b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

// A10: H = 1, inner SGD, outer SGD(1) is synchronous SGD.
TEST(OuterExchangeTest, OneInnerStepOfSgdIsSynchronousSgd) {
  ExchangeSpec spec = Spec(Mode::kDiLoCo);
  spec.outer_rate = 1, spec.outer_momentum = 0;
  const std::vector<double> sync = RollAlone(2, 6);
  const BowlRun run = RollDown(kTwins, spec, 6);
  EXPECT_LT(Furthest(run.weights.at(0).back(), sync), 1e-14);
  EXPECT_EQ(run.hashes.at(0), run.hashes.at(1));
  const BowlRun unlike = RollDown({{1, 1, 1}, {1, 1, 2}, {2, 1, 1}}, spec, 6);
  EXPECT_LT(Furthest(unlike.weights.at(0).back(), RollAlone(3, 6)), 1e-14);
  EXPECT_EQ(unlike.hashes.at(0), unlike.hashes.at(1));
  EXPECT_EQ(unlike.hashes.at(0), unlike.hashes.at(2));

  spec.outer_rate = 0.7;  // control
  EXPECT_GT(Furthest(RollDown(kTwins, spec, 6).weights.at(0).back(), sync), 1e-3);
}

// A10: one pod, outer rate 1, no momentum is the inner run.
TEST(OuterExchangeTest, OnePodIsThePlainRun) {
  for (const int64_t every : {1, 3}) {
    ExchangeSpec spec = Spec(Mode::kDiLoCo, every);
    spec.outer_rate = 1, spec.outer_momentum = 0;
    EXPECT_LT(Furthest(RollDown({{1, 1, 1}}, spec, 7).weights.at(0).back(), RollAlone(1, 7)),
              2e-15);
    spec.outer_momentum = 0.5;  // control
    EXPECT_GT(Furthest(RollDown({{1, 1, 1}}, spec, 7).weights.at(0).back(), RollAlone(1, 7)), 1e-3);
  }
}

// The formula of the whole round with momentum, element by element.
TEST(OuterExchangeTest, DiLoCoIsItsFormula) {
  const int64_t every = 3, steps = 9;
  const ExchangeSpec spec = Spec(Mode::kDiLoCo, every);
  std::vector<double> outer = RollAlone(1, 0), momentum(outer.size(), 0.0);
  std::vector<std::vector<double>> pods(2, outer);
  double labels[2] = {0, 0};
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t q = 0; q < 2; ++q) {
      for (double& x : pods[size_t(q)]) x -= kEta * Bowl(x, q, step);
      labels[q] += double(LabelsOf(q, step));
    }
    if ((step + 1) % every != 0) continue;
    for (size_t i = 0; i < outer.size(); ++i) {
      const double delta =
          (labels[0] * (outer[i] - pods[0][i]) + labels[1] * (outer[i] - pods[1][i])) /
          (labels[0] + labels[1]);
      momentum[i] = 0.9 * momentum[i] + delta;
      outer[i] -= 0.7 * (0.9 * momentum[i] + delta);
      pods[0][i] = pods[1][i] = outer[i];
    }
    labels[0] = labels[1] = 0;
  }
  const BowlRun run = RollDown(kTwins, spec, steps);
  EXPECT_LT(Furthest(run.weights.at(0).back(), outer), 1e-13);
  // Pods go their own ways between two rounds, and only there.
  for (int64_t step = 0; step < steps; ++step) {
    const bool round = (step + 1) % every == 0;
    EXPECT_EQ(run.hashes.at(0)[size_t(step)] == run.hashes.at(1)[size_t(step)], round) << step;
  }
  EXPECT_EQ(run.outer.at(0), run.outer.at(1));
}

// A10: alpha = 1 never syncs; alpha = 0, tau = 0 and one fragment is DiLoCo, bit for bit.
TEST(OuterExchangeTest, StreamingsLimits) {
  ExchangeSpec spec = Spec(Mode::kStreaming, 4);
  spec.fragments = 2, spec.tau = 1, spec.alpha = 1;
  const BowlRun apart = RollDown(kTwins, spec, 8);
  EXPECT_LT(Furthest(apart.weights.at(0).back(), RollAlone(1, 8)), 1e-300);
  EXPECT_NE(apart.hashes.at(0).back(), apart.hashes.at(1).back());
  EXPECT_EQ(apart.outer.at(0), apart.outer.at(1));  // which are nobody's weights
  EXPECT_NE(apart.outer.at(0).front(), apart.outer.at(0).back());

  spec.fragments = 1, spec.tau = 0, spec.alpha = 0;
  const BowlRun streaming = RollDown(kTwins, spec, 9);
  EXPECT_EQ(streaming.hashes, RollDown(kTwins, Spec(Mode::kDiLoCo, 4), 9).hashes);
  spec.tau = 1;  // control
  EXPECT_NE(streaming.hashes, RollDown(kTwins, spec, 9).hashes);
}

// With tau a fragment is what it was when it was sent; pods of unlike meshes agree on the outer
// weights always, whatever the codec loses.
TEST(OuterExchangeTest, OuterWeightsAreTheSameOnAllPods) {
  for (const Codec codec : kCodecs) {
    ExchangeSpec spec = Spec(Mode::kStreaming, 4, codec);
    spec.fragments = 2, spec.tau = 1, spec.alpha = 0.5;
    spec.error_feedback = codec == Codec::kE3m0;
    spec.stochastic = codec == Codec::kInt8;
    const BowlRun run = RollDown({{1, 1, 2}, {2, 1, 1}, {1, 1, 1}}, spec, 10);
    EXPECT_EQ(run.outer.at(0), run.outer.at(1)) << CodecName(codec);
    EXPECT_EQ(run.outer.at(0), run.outer.at(2)) << CodecName(codec);
    // Fragment 0 is sent after step 2 and applied after 3, fragment 1 after 4 and 5.
    const std::vector<uint64_t>& outer = run.outer.at(0);
    for (const auto& [step, changes] : std::map<size_t, bool>{
             {1, false}, {2, true}, {3, false}, {4, true}, {5, false}, {6, true}}) {
      EXPECT_EQ(outer[step] != outer[step - 1], changes) << step;
    }
  }
}

// --- with a model
// ----------------------------------------------------------------------------------

struct ModeRun {
  std::map<int64_t, std::vector<uint64_t>> hashes;
  std::vector<double> losses;  // of pod 0
  std::map<int64_t, Weights> weights;
  std::map<int64_t, int64_t> sent;  // payload bytes of all ranks
};

ModeRun TrainInMode(const std::vector<MeshShape>& meshes, const ExchangeSpec& spec, int64_t steps) {
  ModeRun run;
  for (size_t q = 0; q < meshes.size(); ++q) run.weights[int64_t(q)];
  std::mutex mutex;
  const auto source = TestSource("random:tiny-gqa");
  RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    TrainOptions options = Options(meshes[size_t(pod)], Compute::kF64);
    options.pods = {int64_t(meshes.size()), spec};
    const bool first = world->rank() == 0;
    auto trainer =
        Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, BatchOf(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      const uint64_t hash = ParamHash((*trainer)->store());
      const std::lock_guard<std::mutex> lock(mutex);
      if (first) run.hashes[pod].push_back(hash);
      if (first && pod == 0) run.losses.push_back(result->loss);
    }
    CollectWeights(**trainer, run.weights[pod], mutex);
    trainer->reset();  // what it posted is with the link
    const std::lock_guard<std::mutex> lock(mutex);
    run.sent[pod] += link.counters().payload_sent;
  });
  return run;
}

// Each step's gradient, applied by the step after it.
Weights DelayedOnOnePod(int64_t steps) {
  Weights weights;
  std::mutex mutex;
  const auto source = TestSource("random:tiny-gqa");
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    auto trainer =
        Trainer::Create(std::move(world), source, Options({1, 1, 1}, Compute::kF64), nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ParamStore& store = (*trainer)->store();
    std::vector<std::vector<double>> before;
    for (int64_t step = 0; step < steps; ++step) {
      ASSERT_TRUE((*trainer)->Gradient(step, BatchOf(step, source->config.vocab)).ok());
      std::vector<std::vector<double>> own;
      for (int64_t g = 0; g < store.groups().count(); ++g) {
        const Tensor gradient = store.Stored(Kind::kGradients, g);
        double* values = gradient.as<double>();
        own.emplace_back(values, values + gradient.rows());
        if (step > 0) std::copy(before[size_t(g)].begin(), before[size_t(g)].end(), values);
      }
      StepResult result;
      result.step = step;
      if (step > 0) {
        ASSERT_TRUE((*trainer)->Update(result).ok());
      }
      before = std::move(own);
    }
    CollectWeights(**trainer, weights, mutex);
  });
  return weights;
}

TEST(PodModesTest, DelayedAppliesTheGradientOfTheStepBefore) {
  const Weights one = DelayedOnOnePod(12);
  for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
           {{2, 1, 1}, {2, 1, 1}}, {{1, 1, 1}, {1, 2, 1}, {1, 1, 2}}}) {
    const ModeRun run = TrainInMode(meshes, Spec(Mode::kDelayed), 12);
    for (const auto& [pod, hashes] : run.hashes) EXPECT_EQ(hashes, run.hashes.at(0)) << pod;
    for (const auto& [pod, weights] : run.weights) EXPECT_LT(WorstError(weights, one), 1e-10);
    EXPECT_LT(run.losses.back(), run.losses.front());
  }
  const ModeRun exact = TrainInMode(kTwins, Spec(Mode::kExact), 12);  // control
  EXPECT_GT(WorstError(exact.weights.at(0), one), 1e-4);
}

TEST(PodModesTest, DiLoCoAndStreamingLearn) {
  ExchangeSpec streaming = Spec(Mode::kStreaming, 4, Codec::kInt8);
  streaming.fragments = 2, streaming.tau = 1, streaming.alpha = 0.5, streaming.outer_rate = 0.4;
  for (const ExchangeSpec& spec : {Spec(Mode::kDiLoCo, 5), streaming}) {
    SCOPED_TRACE(ToString(spec));
    const ModeRun run = TrainInMode({{1, 1, 1}, {1, 1, 2}}, spec, 20);
    EXPECT_LT(run.losses.back(), run.losses.front() - 0.2);
    const bool round = spec.mode == Mode::kDiLoCo;
    EXPECT_EQ(run.hashes.at(0).back() == run.hashes.at(1).back(), round);
    EXPECT_NE(run.hashes.at(0)[17], run.hashes.at(1)[17]);
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
    return TrainInMode(kTwins, spec, steps).sent.at(0);
  };
  for (const Codec codec : kCodecs) {
    SCOPED_TRACE(CodecName(codec));
    const int64_t once = CodeBytes(codec, elements) + (HasScales(codec) ? 2 * blocks : 0);
    // From three rounds to four: no greeting.
    const ExchangeSpec diloco = Spec(Mode::kDiLoCo, 3, codec);
    EXPECT_EQ(bytes(diloco, 12) - bytes(diloco, 9), once + 8);
    EXPECT_EQ(bytes(diloco, 11), bytes(diloco, 9));
  }
}

// What a rank accounts for is what `plan` foresees, and DiLoCo's outer state shows in it.
TEST(PodModesTest, TheExchangesMemoryIsForeseen) {
  const auto source = TestSource("random:tiny-gqa");
  std::vector<int64_t> accounted;
  for (const ExchangeSpec& spec : {Spec(Mode::kExact), Spec(Mode::kDiLoCo, 3, Codec::kInt8)}) {
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
      EXPECT_GT(accounted.back(), accounted.size() == 1 ? copy : 3 * copy);
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
  ExchangeSpec streaming = Spec(Mode::kStreaming, 6, Codec::kE3m0);
  streaming.fragments = 2, streaming.tau = 2, streaming.alpha = 0.5;
  streaming.error_feedback = true;
  ExchangeSpec exact = Spec(Mode::kExact, 1, Codec::kInt8);
  exact.error_feedback = true;
  for (const ExchangeSpec& spec : {exact, Spec(Mode::kDelayed, 1, Codec::kBf16),
                                   Spec(Mode::kDiLoCo, 4, Codec::kFp32), streaming}) {
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
