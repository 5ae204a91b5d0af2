// Training on a GPU: the CPU's losses and gradients, by the same code.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "parallel/trainer.h"
#include "tests/support/backend_side.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/mixed_batch.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using CudaTrainer = OnGpu;
using Kind = ParamStore::Kind;

const char* const kModels[] = {"random:tiny-gqa", "random:tiny-qwen3", "random:palm-tiny",
                               "random:gpt3-tiny"};

// Two packs of documents.
TrainBatch BatchOf(int64_t step, int64_t vocab) {
  TrainBatch batch;
  batch.documents = {{40, 1, 24}, {65}};
  batch.read = [documents = batch.documents, step, vocab](int64_t p) -> absl::StatusOr<Pack> {
    Pack pack;
    pack.document_lengths = documents[size_t(p)];
    const std::vector<int32_t> text = MixedIds(65 + step, vocab);
    for (int64_t length : pack.document_lengths) {
      for (int64_t i = 0; i < length; ++i) {
        pack.ids.push_back(text[size_t(step + int64_t(pack.ids.size()))]);
        pack.labels.push_back(i + 1 < length ? text[size_t(step + int64_t(pack.ids.size()))] : -1);
      }
    }
    pack.labels.back() = -1;
    return pack;
  };
  return batch;
}

TrainOptions OptionsOn(Device device) {
  TrainOptions options;
  options.device = device;
  options.zeta = 1e-3;
  options.token_block = 16;
  options.dropout = 0.1;
  options.dropout_seed = 3;
  options.optimizer.rate.peak = 3e-3;
  options.optimizer.decay = {WeightDecay::Kind::kTimesRate, 0.1};
  return options;
}

std::unique_ptr<Trainer> NewTrainer(const char* model, const TrainOptions& options) {
  auto trainer =
      Trainer::Create(std::make_unique<SelfCommunicator>(), TestSource(model), options, nullptr);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  return trainer.ok() ? std::move(*trainer) : nullptr;
}

std::vector<double> Losses(const char* model, const TrainOptions& options, int64_t steps) {
  std::vector<double> losses;
  const auto trainer = NewTrainer(model, options);
  for (int64_t step = 0; trainer != nullptr && step < steps; ++step) {
    const auto result = trainer->Step(step, BatchOf(step, trainer->config().vocab));
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) break;
    EXPECT_EQ(result->skipped, "");
    losses.push_back(result->loss);
  }
  return losses;
}

// The gradients of the first step, a group each.
Results Gradients(const char* model, const TrainOptions& options) {
  Results groups;
  const auto trainer = NewTrainer(model, options);
  if (trainer == nullptr) return groups;
  const auto loss = trainer->Gradient(0, BatchOf(0, trainer->config().vocab));
  EXPECT_TRUE(loss.ok()) << loss.status();
  for (int64_t g = 0; g < trainer->store().groups().count(); ++g) {
    const Tensor gradient = trainer->store().Stored(Kind::kGradients, g);
    std::vector<float> host(size_t(gradient.size()));
    trainer->backend().Download(trainer->stream(), gradient, host.data());
    groups.push_back(std::move(host));
  }
  return groups;
}

TEST_F(CudaTrainer, FirstGradientsAreTheCpus) {
  for (const char* model : kModels) {
    for (Remat remat : {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock}) {
      SCOPED_TRACE(testing::Message() << model << " remat " << int(remat));
      TrainOptions cpu = OptionsOn(Device::kCpu), gpu = OptionsOn(Device::kCuda);
      cpu.remat = gpu.remat = remat;
      const Results expected = Gradients(model, cpu), actual = Gradients(model, gpu);
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t g = 0; g < actual.size(); ++g) {
        EXPECT_TRUE(AllClose(actual[g], expected[g], 2e-4)) << "group " << g;
      }
    }
  }
}

TEST_F(CudaTrainer, TheCurveIsTheCpus) {
  for (const char* model : kModels) {
    SCOPED_TRACE(model);
    const std::vector<double> expected = Losses(model, OptionsOn(Device::kCpu), 8);
    const std::vector<double> actual = Losses(model, OptionsOn(Device::kCuda), 8);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_NEAR(actual[i] / expected[i], 1, 2e-4) << "step " << i;
    }
    EXPECT_NE(expected[7], expected[0]);  // something was learnt
  }
}

TEST_F(CudaTrainer, Bf16IsNearAndAdafactorToo) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny"}) {
    SCOPED_TRACE(model);
    TrainOptions cpu = OptionsOn(Device::kCpu), gpu = OptionsOn(Device::kCuda);
    cpu.optimizer.kind = gpu.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
    gpu.compute = Compute::kBF16;
    const std::vector<double> expected = Losses(model, cpu, 4), actual = Losses(model, gpu, 4);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_NEAR(actual[i] / expected[i], 1, 2e-2) << "step " << i;
    }
    EXPECT_NE(actual[3], expected[3]);
  }
}

TEST_F(CudaTrainer, TheSameBitsEachTime) {
  const TrainOptions options = OptionsOn(Device::kCuda);
  EXPECT_EQ(Losses("random:tiny-gqa", options, 4), Losses("random:tiny-gqa", options, 4));
}

// Heads of 64 and enough tokens for the tensor cores, where sums are added by many thread blocks.
TEST_F(CudaTrainer, TheSameBitsEachTimeInBf16) {
  TrainOptions options = OptionsOn(Device::kCuda);
  options.compute = Compute::kBF16;
  options.deterministic = true;
  const auto gradients = [&] {
    Results groups;
    const auto trainer = NewTrainer("random:124m", options);
    const TrainBatch batch = MixedBatch({{1000, 24}}, trainer->config().vocab);
    for (int64_t step = 0; step < 3; ++step) {
      const auto result = trainer->Step(step, batch);
      EXPECT_TRUE(result.ok()) << result.status();
      groups.push_back({float(result->loss), float(result->grad_norm)});
    }
    for (int64_t g = 0; g < trainer->store().groups().count(); ++g) {
      const Tensor weights = trainer->store().Stored(Kind::kWeights, g);
      std::vector<float> host(size_t(weights.size()));
      trainer->backend().Download(trainer->stream(), weights, host.data());
      groups.push_back(std::move(host));
    }
    return groups;
  };
  const Results once = gradients();
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(gradients() == once);
  EXPECT_NE(once[0], once[2]);
}

// Losses of two ranks on `mesh`, which share a GPU where there is but one.
std::vector<double> LossesOn(MeshShape mesh, const char* model, int64_t steps,
                             Compute compute = Compute::kF32) {
  TrainOptions options = OptionsOn(Device::kCuda);
  options.mesh = mesh;
  options.compute = compute;
  options.share_gpus = CudaDevices() < 2;
  std::vector<double> losses;
  RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const bool first = world->rank() == 0;
    auto trainer = Trainer::Create(std::move(world), TestSource(model), options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, BatchOf(step, (*trainer)->config().vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      if (first) losses.push_back(result->loss);
    }
  });
  return losses;
}

// One curve on every mesh: the weights are sharded, gathered and their gradients summed by NCCL.
TEST_F(CudaTrainer, TheCurveIsTheCpusOnTwoRanks) {
  for (const char* model : kModels) {
    const std::vector<double> expected = Losses(model, OptionsOn(Device::kCpu), 8);
    for (const MeshShape& mesh : {MeshShape{2, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 1, 2}}) {
      SCOPED_TRACE(testing::Message() << model << " " << ToString(mesh));
      const std::vector<double> actual = LossesOn(mesh, model, 8);
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_NEAR(actual[i] / expected[i], 1, 2e-4) << "step " << i;
      }
    }
  }
}

TEST_F(CudaTrainer, TwoRanksGiveTheSameBitsEachTime) {
  for (const MeshShape& mesh : {MeshShape{2, 1, 1}, MeshShape{1, 2, 1}}) {
    EXPECT_EQ(LossesOn(mesh, "random:tiny-gqa", 4), LossesOn(mesh, "random:tiny-gqa", 4));
  }
}

TEST_F(CudaTrainer, Bf16OnTwoRanksIsNear) {
  const std::vector<double> expected = Losses("random:tiny-gqa", OptionsOn(Device::kCpu), 4);
  for (const MeshShape& mesh : {MeshShape{2, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 1, 2}}) {
    const std::vector<double> actual = LossesOn(mesh, "random:tiny-gqa", 4, Compute::kBF16);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i] / expected[i], 1, 2e-2);
    EXPECT_NE(actual[3], expected[3]);
  }
}

// Negative control: another dropout seed is another gradient.
TEST_F(CudaTrainer, TheComparisonSeesAnotherMask) {
  TrainOptions options = OptionsOn(Device::kCuda);
  options.dropout_seed = 4;
  const Results expected = Gradients("random:tiny-gqa", OptionsOn(Device::kCpu));
  const Results actual = Gradients("random:tiny-gqa", options);
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_FALSE(AllClose(actual[1], expected[1], 2e-4));
}

}  // namespace
}  // namespace toroid
