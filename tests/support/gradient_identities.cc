// The identities of exact and delayed, with a model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/pod_identities.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/train_on_pods.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;
using Mode = ExchangeSpec::Mode;

constexpr char kModel[] = "random:tiny-gqa";

// The acceptance of A9: hashes after each of 50 steps, and the one-pod run.
void ExactIsOnePodWithTheWholeBatch(const NewPodLinkNetwork& network) {
  const PodCurve one = TrainOnOne(kModel, Float64(), 50);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.3);  // it learns
  for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
           {{2, 1, 1}, {2, 1, 1}}, {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}}}) {
    SCOPED_TRACE(absl::StrCat(meshes.size(), " pods of ", ToString(meshes[0])));
    const std::vector<PodCurve> pods = TrainOnPods(network, kModel, Float64(), meshes, 50);
    ExpectAllPodsAlike(pods);
    ExpectOnePod(pods, one, 1e-10);
  }
}

void ExactOnUnlikeMeshes(const NewPodLinkNetwork& network) {
  for (const char* model : {kModel, "random:gpt3-tiny"}) {
    const PodCurve one = TrainOnOne(model, Float64(), 8);
    for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
             {{1, 2, 1}, {1, 1, 2}}, {{1, 1, 3}, {2, 1, 1}}, {{1, 1, 1}, {2, 1, 2}, {1, 3, 1}}}) {
      SCOPED_TRACE(absl::StrCat(model, " ", ToString(meshes[0]), " beside ", ToString(meshes[1])));
      const std::vector<PodCurve> pods = TrainOnPods(network, model, Float64(), meshes, 8);
      ExpectAllPodsAlike(pods);
      ExpectOnePod(pods, one, 1e-10);
    }
  }
}

// Micro-batches, dropout by the numbers of the whole batch, Adafactor's RMS, a codec that loses.
void ExactWithAllThatAStepHas(const NewPodLinkNetwork& network) {
  TrainOptions options = Float64();
  options.dropout = 0.1;
  options.dropout_seed = 3;
  options.max_norm = 0.1;
  options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
  const PodCurve one = TrainOnOne(kModel, options, 6);
  const std::vector<PodCurve> pods =
      TrainOnPods(network, kModel, options, {{1, 1, 2}, {1, 1, 1}}, 6);
  ExpectAllPodsAlike(pods);
  ExpectOnePod(pods, one, 1e-10);

  for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kE3m0}) {
    SCOPED_TRACE(CodecName(codec));
    TrainOptions lossy = Options({1, 1, 1}, Compute::kF32);
    lossy.pods.exchange.codec = codec;
    lossy.pods.exchange.error_feedback = codec == Codec::kE3m0;
    const std::vector<PodCurve> twins =
        TrainOnPods(network, kModel, lossy, {{1, 1, 3}, {1, 2, 1}}, 6);
    ExpectAllPodsAlike(twins);
    EXPECT_LT(twins[0].losses.back(), twins[0].losses.front());
  }
}

// A step in which one pod has no label, one in which none has, and packs fewer than pods.
void PodsWithoutLabels(const NewPodLinkNetwork& network) {
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
  const PodCurve one = TrainOnOne(kModel, Float64(), 8, batch);
  EXPECT_EQ(one.labels[1], 0);
  EXPECT_EQ(one.hashes[0], one.hashes[1]);
  const std::vector<PodCurve> pods =
      TrainOnPods(network, kModel, Float64(), {{1, 1, 1}, {1, 1, 2}, {1, 1, 1}}, 8, batch);
  ExpectAllPodsAlike(pods);
  EXPECT_EQ(pods[0].labels, one.labels);
  EXPECT_EQ(pods[0].hashes[0], pods[0].hashes[1]);
  for (const PodCurve& pod : pods) EXPECT_LT(WorstError(pod.weights, one.weights), 1e-10);
}

// Each step's gradient, applied by the step after it.
Weights DelayedOnOnePod(int64_t steps) {
  Weights weights;
  std::mutex mutex;
  const auto source = TestSource(kModel);
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

void DelayedAppliesTheGradientOfTheStepBefore(const NewPodLinkNetwork& network) {
  const Weights one = DelayedOnOnePod(12);
  const TrainOptions delayed = Float64(ExchangeOf(Mode::kDelayed));
  for (const std::vector<MeshShape>& meshes : std::vector<std::vector<MeshShape>>{
           {{2, 1, 1}, {2, 1, 1}}, {{1, 1, 1}, {1, 2, 1}, {1, 1, 2}}}) {
    const std::vector<PodCurve> pods = TrainOnPods(network, kModel, delayed, meshes, 12);
    for (const PodCurve& pod : pods) {
      EXPECT_EQ(pod.hashes, pods[0].hashes);
      EXPECT_LT(WorstError(pod.weights, one), 1e-10);
    }
    EXPECT_LT(pods[0].losses.back(), pods[0].losses.front());
  }
  const std::vector<PodCurve> exact =
      TrainOnPods(network, kModel, Float64(), {{1, 1, 1}, {1, 1, 1}}, 12);
  EXPECT_GT(WorstError(exact[0].weights, one), 1e-4);  // control
}

// --- negative controls ---------------------------------------------------------------------------

void AFlippedWeightOfOnePodIsSeen(const NewPodLinkNetwork& network) {
  const auto flip = [](Trainer& trainer, int64_t pod, int64_t step) {
    if (pod != 1 || step != 2) return;
    double* w = trainer.store().Stored(ParamStore::Kind::kWeights, 1).as<double>();
    w[5] = std::nextafter(w[5], 2.0);
  };
  const std::vector<PodCurve> pods =
      TrainOnPods(network, kModel, Float64(), {{1, 1, 1}, {1, 1, 1}}, 4, AwkwardBatch, flip);
  EXPECT_EQ(pods[0].hashes[1], pods[1].hashes[1]);
  EXPECT_NE(pods[0].hashes[2], pods[1].hashes[2]);
}

// Without the exchange each pod has another half of the batch.
void HalfTheBatchIsAnotherCurve(const NewPodLinkNetwork&) {
  const auto half = [](int64_t step, int64_t vocab) {
    TrainBatch batch = BatchOf(step, vocab);
    batch.documents.resize(2);
    return batch;
  };
  const PodCurve one = TrainOnOne(kModel, Float64(), 4);
  const PodCurve other = TrainOnOne(kModel, Float64(), 4, half);
  EXPECT_GT(std::abs(other.losses[2] / one.losses[2] - 1), 1e-6);
  EXPECT_GT(WorstError(other.weights, one.weights), 1e-6);
}

}  // namespace

const std::vector<PodIdentityCase>& GradientIdentities() {
  static const auto* const cases = new std::vector<PodIdentityCase>{
      {"ExactIsOnePodWithTheWholeBatch", ExactIsOnePodWithTheWholeBatch},
      {"ExactOnUnlikeMeshes", ExactOnUnlikeMeshes},
      {"ExactWithAllThatAStepHas", ExactWithAllThatAStepHas},
      {"PodsWithoutLabels", PodsWithoutLabels},
      {"DelayedAppliesTheGradientOfTheStepBefore", DelayedAppliesTheGradientOfTheStepBefore},
      {"AFlippedWeightOfOnePodIsSeen", AFlippedWeightOfOnePodIsSeen},
      {"HalfTheBatchIsAnotherCurve", HalfTheBatchIsAnotherCurve},
  };
  return *cases;
}

}  // namespace toroid
