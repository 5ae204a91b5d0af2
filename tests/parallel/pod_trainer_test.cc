// Training on pods of threads: `exact` is the whole batch on one pod, bit for bit the same on all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "parallel/host_exchange.h"
#include "parallel/param_hash.h"
#include "parallel/progress_board.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

// What one pod saw, and its weights at the end.
struct PodCurve {
  std::vector<double> losses, norms;
  std::vector<uint64_t> hashes;  // of the weights after each step
  std::vector<int64_t> labels;
  Weights weights;
  int64_t bytes_sent = 0;  // of all ranks
};

using MakeBatch = std::function<TrainBatch(int64_t step, int64_t vocab)>;

TrainBatch AwkwardBatch(int64_t step, int64_t vocab) { return BatchOf(step, vocab); }

std::vector<PodCurve> TrainOnPods(
    const std::string& model, const TrainOptions& base, const std::vector<MeshShape>& meshes,
    int64_t steps, const MakeBatch& batch = AwkwardBatch,
    const std::function<void(Trainer&, int64_t pod, int64_t step)>& meddle = nullptr) {
  std::vector<PodCurve> curves(meshes.size());
  const auto source = TestSource(model);
  std::mutex mutex;
  RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    TrainOptions options = base;
    options.mesh = meshes[size_t(pod)];
    options.pods.count = int64_t(meshes.size());
    const bool first = world->rank() == 0;
    auto trainer =
        Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    PodCurve& curve = curves[size_t(pod)];
    for (int64_t step = 0; step < steps; ++step) {
      if (meddle) meddle(**trainer, pod, step);
      const auto result = (*trainer)->Step(step, batch(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      const uint64_t hash = ParamHash((*trainer)->store());
      if (!first) continue;
      curve.losses.push_back(result->loss);
      curve.norms.push_back(result->grad_norm);
      curve.labels.push_back(result->labels);
      curve.hashes.push_back(hash);
    }
    CollectWeights(**trainer, curve.weights, mutex);
    const std::lock_guard<std::mutex> lock(mutex);
    curve.bytes_sent += link.counters().payload_sent;
  });
  return curves;
}

// The whole batch on one rank.
PodCurve TrainOnOne(const std::string& model, TrainOptions options, int64_t steps,
                    const MakeBatch& batch = AwkwardBatch) {
  PodCurve curve;
  std::mutex mutex;
  const auto source = TestSource(model);
  options.mesh = {1, 1, 1};
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    auto trainer = Trainer::Create(std::move(world), source, options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, batch(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      curve.losses.push_back(result->loss);
      curve.norms.push_back(result->grad_norm);
      curve.labels.push_back(result->labels);
      curve.hashes.push_back(ParamHash((*trainer)->store()));
    }
    CollectWeights(**trainer, curve.weights, mutex);
  });
  return curve;
}

void ExpectAllPodsAlike(const std::vector<PodCurve>& pods) {
  for (size_t q = 1; q < pods.size(); ++q) {
    EXPECT_EQ(pods[q].hashes, pods[0].hashes) << "pod " << q;
    EXPECT_EQ(pods[q].losses, pods[0].losses) << "pod " << q;
    EXPECT_EQ(pods[q].norms, pods[0].norms) << "pod " << q;
  }
}

void ExpectOnePod(const std::vector<PodCurve>& pods, const PodCurve& one, double tolerance) {
  ASSERT_EQ(pods[0].losses.size(), one.losses.size());
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(pods[0].losses[i] / one.losses[i], 1, tolerance) << "step " << i;
    EXPECT_NEAR(pods[0].norms[i] / one.norms[i], 1, 10 * tolerance) << "step " << i;
  }
  EXPECT_EQ(pods[0].labels, one.labels);
  for (const PodCurve& pod : pods) EXPECT_LT(WorstError(pod.weights, one.weights), tolerance);
}

TrainOptions Float64(Mode mode = Mode::kExact) {
  TrainOptions options = Options({1, 1, 1}, Compute::kF64);
  options.pods.exchange.mode = mode;
  options.pods.exchange.codec = Codec::kFp64;
  return options;
}

// The acceptance of A9: hashes after each of 50 steps, and the one-pod run.
TEST(PodTrainerTest, ExactIsOnePodWithTheWholeBatch) {
  const PodCurve one = TrainOnOne("random:tiny-gqa", Float64(), 50);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.3);  // it learns
  for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
           {{2, 1, 1}, {2, 1, 1}}, {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}}}) {
    SCOPED_TRACE(absl::StrCat(meshes.size(), " pods of ", ToString(meshes[0])));
    const std::vector<PodCurve> pods = TrainOnPods("random:tiny-gqa", Float64(), meshes, 50);
    ExpectAllPodsAlike(pods);
    ExpectOnePod(pods, one, 1e-10);
  }
}

TEST(PodTrainerTest, ExactOnUnlikeMeshes) {
  for (const char* model : {"random:tiny-gqa", "random:gpt3-tiny"}) {
    const PodCurve one = TrainOnOne(model, Float64(), 8);
    for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
             {{1, 2, 1}, {1, 1, 2}}, {{1, 1, 3}, {2, 1, 1}}, {{1, 1, 1}, {2, 1, 2}, {1, 3, 1}}}) {
      SCOPED_TRACE(absl::StrCat(model, " ", ToString(meshes[0]), " beside ", ToString(meshes[1])));
      const std::vector<PodCurve> pods = TrainOnPods(model, Float64(), meshes, 8);
      ExpectAllPodsAlike(pods);
      ExpectOnePod(pods, one, 1e-10);
    }
  }
}

// Micro-batches, dropout by the numbers of the whole batch, Adafactor's RMS, a codec that loses.
TEST(PodTrainerTest, ExactWithAllThatAStepHas) {
  TrainOptions options = Float64();
  options.dropout = 0.1;
  options.dropout_seed = 3;
  options.max_norm = 0.1;
  options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
  const PodCurve one = TrainOnOne("random:tiny-gqa", options, 6);
  const std::vector<PodCurve> pods =
      TrainOnPods("random:tiny-gqa", options, {{1, 1, 2}, {1, 1, 1}}, 6);
  ExpectAllPodsAlike(pods);
  ExpectOnePod(pods, one, 1e-10);

  for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kE3m0}) {
    SCOPED_TRACE(CodecName(codec));
    TrainOptions lossy = Options({1, 1, 1}, Compute::kF32);
    lossy.pods.exchange.codec = codec;
    lossy.pods.exchange.error_feedback = codec == Codec::kE3m0;
    const std::vector<PodCurve> twins =
        TrainOnPods("random:tiny-gqa", lossy, {{1, 1, 3}, {1, 2, 1}}, 6);
    ExpectAllPodsAlike(twins);
    EXPECT_LT(twins[0].losses.back(), twins[0].losses.front());
  }
}

// A step in which one pod has no label, one in which none has, and packs fewer than pods.
TEST(PodTrainerTest, PodsWithoutLabels) {
  const auto batch = [](int64_t step, int64_t vocab) {
    using Documents = std::vector<std::vector<int64_t>>;
    switch (step % 4) {
      case 0:
        return BatchOf(step, vocab, Documents{{19, 14}, {1, 1, 1}, {1}});
      case 1:
        return BatchOf(step, vocab, Documents{{1, 1}, {1, 1, 1}, {1}});
      case 2:
        return BatchOf(step, vocab, Documents{{19, 14}});
      default:
        return BatchOf(step, vocab, Documents{{19, 14}, {5}, {7, 9, 1}, {2, 2}, {33}});
    }
  };
  const PodCurve one = TrainOnOne("random:tiny-gqa", Float64(), 8, batch);
  EXPECT_EQ(one.labels[1], 0);
  EXPECT_EQ(one.hashes[0], one.hashes[1]);
  const std::vector<PodCurve> pods =
      TrainOnPods("random:tiny-gqa", Float64(), {{1, 1, 1}, {1, 1, 2}, {1, 1, 1}}, 8, batch);
  ExpectAllPodsAlike(pods);
  EXPECT_EQ(pods[0].labels, one.labels);
  EXPECT_EQ(pods[0].hashes[0], pods[0].hashes[1]);
  for (const PodCurve& pod : pods) EXPECT_LT(WorstError(pod.weights, one.weights), 1e-10);
}

// A gradient that is not finite on one pod is skipped by all.
TEST(PodTrainerTest, WhatOnePodMustSkipAllSkip) {
  for (const Codec codec : {Codec::kFp64, Codec::kInt8}) {
    TrainOptions options = Float64();
    options.pods.exchange.codec = codec;
    std::mutex mutex;
    std::vector<std::string> skipped;
    const auto source = TestSource("random:tiny-gqa");
    RunOnPods({{1, 1, 1}, {1, 1, 2}},
              [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
                TrainOptions own = options;
                own.mesh = pod == 0 ? MeshShape{1, 1, 1} : MeshShape{1, 1, 2};
                own.pods.count = 2;
                if (pod == 1) own.zeta = std::numeric_limits<double>::infinity();
                auto trainer = Trainer::Create(std::move(world), source, own, nullptr, Rounds,
                                               PodAccess{&link});
                ASSERT_TRUE(trainer.ok()) << trainer.status();
                const uint64_t before = ParamHash((*trainer)->store());
                const auto result = (*trainer)->Step(0, BatchOf(0, source->config.vocab));
                ASSERT_TRUE(result.ok()) << result.status();
                EXPECT_EQ(ParamHash((*trainer)->store()), before);
                const std::lock_guard<std::mutex> lock(mutex);
                skipped.push_back(result->skipped);
              });
    ASSERT_EQ(skipped.size(), 3u);
    EXPECT_NE(skipped[0], "");
    EXPECT_THAT(skipped, testing::Each(skipped[0]));
  }
}

// A group is whole while the backward of the next one runs or waits to; in the last micro-batch
// alone, once each, those whose gradient comes in two parts (a tied head) at their second.
TEST(PodTrainerTest, GroupsAreWholeWhileTheBackwardStillRuns) {
  for (const char* model : {"random:tiny-gqa", "random:gpt3-tiny"}) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}, MeshShape{1, 1, 2}}) {
      SCOPED_TRACE(absl::StrCat(model, " ", ToString(mesh)));
      const auto source = TestSource(model);
      RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
        ProgressBoard board;
        auto trainer =
            Trainer::Create(std::move(world), source, Options(mesh, Compute::kF32), &board);
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        ParamStore& store = (*trainer)->store();
        std::vector<int64_t> groups;
        std::vector<int64_t> places;  // that the rank had passed then
        store.OnWhole([&](int64_t group) {
          groups.push_back(group);
          places.push_back(board.Read().sequence);
        });
        const auto loss = (*trainer)->Gradient(0, BatchOf(0, source->config.vocab));
        ASSERT_TRUE(loss.ok()) << loss.status();
        const ParamGroups& of = store.groups();
        std::vector<int64_t> expected;
        if (of.head() != of.embedding()) expected.push_back(of.head());
        for (int64_t layer = (*trainer)->layers() - 1; layer >= 0; --layer) {
          expected.push_back(of.layer(layer));
        }
        expected.push_back(of.embedding());
        EXPECT_EQ(groups, expected);
        // On more ranks a reduction travels while the layer below computes.
        const int64_t later = mesh.size() == 1 ? 1 : 2;
        if ((*trainer)->layers() > later) {
          EXPECT_LT(places.front(), board.Read().sequence);
        }
      });
    }
  }
}

// --- negative controls ---------------------------------------------------------------------------

TEST(PodTrainerTest, AFlippedWeightOfOnePodIsSeen) {
  const auto flip = [](Trainer& trainer, int64_t pod, int64_t step) {
    if (pod != 1 || step != 2) return;
    double* w = trainer.store().Stored(ParamStore::Kind::kWeights, 1).as<double>();
    w[5] = std::nextafter(w[5], 2.0);
  };
  const std::vector<PodCurve> pods =
      TrainOnPods("random:tiny-gqa", Float64(), {{1, 1, 1}, {1, 1, 1}}, 4, AwkwardBatch, flip);
  EXPECT_EQ(pods[0].hashes[1], pods[1].hashes[1]);
  EXPECT_NE(pods[0].hashes[2], pods[1].hashes[2]);
}

// Without the exchange each pod has another half of the batch.
TEST(PodTrainerTest, HalfTheBatchIsAnotherCurve) {
  const auto half = [](int64_t step, int64_t vocab) {
    TrainBatch batch = BatchOf(step, vocab);
    batch.documents.resize(2);
    return batch;
  };
  const PodCurve one = TrainOnOne("random:tiny-gqa", Float64(), 4);
  const PodCurve other = TrainOnOne("random:tiny-gqa", Float64(), 4, half);
  EXPECT_GT(std::abs(other.losses[2] / one.losses[2] - 1), 1e-6);
  EXPECT_GT(WorstError(other.weights, one.weights), 1e-6);
}

}  // namespace
}  // namespace toroid
