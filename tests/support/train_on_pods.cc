#include "tests/support/train_on_pods.h"

#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <utility>

#include "parallel/param_hash.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

void Note(const StepResult& result, uint64_t hash, PodCurve& curve) {
  curve.losses.push_back(result.loss);
  curve.norms.push_back(result.grad_norm);
  curve.labels.push_back(result.labels);
  curve.hashes.push_back(hash);
}

}  // namespace

std::vector<PodCurve> TrainOnPods(const NewPodLinkNetwork& network, const std::string& model,
                                  const TrainOptions& base, const std::vector<MeshShape>& meshes,
                                  int64_t steps, const MakeBatch& batch, const Meddle& meddle) {
  std::vector<PodCurve> curves(meshes.size());
  const auto source = TestSource(model);
  std::mutex mutex;
  RunOnPods(network, meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
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
      if (first) Note(*result, hash, curve);
    }
    CollectWeights(**trainer, curve.weights, mutex);
    trainer->reset();  // what it posted is with the link
    const std::lock_guard<std::mutex> lock(mutex);
    curve.bytes_sent += link.counters().payload_sent;
    curve.wire_sent += link.counters().wire_sent;
  });
  return curves;
}

PodCurve TrainOnOne(const std::string& model, TrainOptions options, int64_t steps,
                    const MakeBatch& batch) {
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
      Note(*result, ParamHash((*trainer)->store()), curve);
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

TrainOptions Float64(const ExchangeSpec& exchange) {
  TrainOptions options = Options({1, 1, 1}, Compute::kF64);
  options.pods.exchange = exchange;
  return options;
}

}  // namespace toroid
