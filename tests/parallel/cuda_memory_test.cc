// What `plan` foresees of a GPU's memory against what the device reports.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/cuda_devices.h"
#include "parallel/memory_plan.h"
#include "tests/support/backend_side.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/mixed_batch.h"

namespace toroid {
namespace {

// Each body runs in a process of its own, which first asks what is in use before it has hold of the
// device: so the driver's part is in the difference.
class CudaMemorySlow : public OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    if (const auto used = CudaUsedBytes(0); !used.ok()) GTEST_SKIP() << used.status();
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

// Ends the process: 0 if the plan's bytes are within 3% of what the device has come to use.
[[noreturn]] void Compare(const char* what, int64_t before,
                          const absl::StatusOr<MemoryPlan>& plan) {
  const int64_t used = *CudaUsedBytes(0) - before;
  const RankMemory& memory = plan->groups.at(0).memory;
  const double ratio = double(memory.total()) / double(used);
  std::printf(
      "%s: plan %.1f MiB, device %.1f MiB, ratio %.4f; driver and workspaces %.1f planned, %.1f "
      "seen\n",
      what, double(memory.total()) / (1 << 20), double(used) / (1 << 20), ratio,
      double(memory.device) / (1 << 20), double(used - memory.total() + memory.device) / (1 << 20));
  std::fflush(stdout);
  std::exit(ratio >= 0.97 && ratio <= 1.03 ? 0 : 1);
}

// planned: tokens of the prompt that the plan is of; 0: as many.
[[noreturn]] void Generate(const std::string& model, Compute compute, int64_t prompt,
                           int64_t planned = 0) {
  const int64_t before = *CudaUsedBytes(0);
  const EngineCase c{.model = model,
                     .compute = compute,
                     .context = prompt + 64,
                     .threads = 16,
                     .device = Device::kCuda};
  PlannedInference job;
  job.load.model = model;
  job.load.compute = compute;
  job.load.device = Device::kCuda;
  job.load.context = (planned > 0 ? planned : prompt) + 64;
  job.max_tokens = 64;
  OnEngines(c, [&](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = MixedIds(prompt, engine.config().vocab);
    request.max_tokens = 64;
    request.ignore_eos = true;
    const auto made = engine.Generate(request, {});
    if (!made.ok()) std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
    if (!made.ok()) std::exit(2);
    Compare(model.c_str(), before, PlanMemory(TestSource(model), job));
  });
  std::exit(3);
}

[[noreturn]] void Train(const std::string& model, int64_t tokens) {
  const int64_t before = *CudaUsedBytes(0);
  TrainOptions options;
  options.device = Device::kCuda;
  options.compute = Compute::kBF16;
  options.remat = Remat::kAttentionOutput;
  options.optimizer.rate.peak = 1e-4;
  auto trainer =
      Trainer::Create(std::make_unique<SelfCommunicator>(), TestSource(model), options, nullptr);
  if (!trainer.ok()) std::fprintf(stderr, "%s\n", trainer.status().ToString().c_str());
  if (!trainer.ok()) std::exit(2);
  const TrainBatch batch = MixedBatch({{tokens}}, (*trainer)->config().vocab);
  for (int64_t step = 0; step < 2; ++step) {
    const auto result = (*trainer)->Step(step, batch);
    if (!result.ok()) std::exit(2);
  }
  (*trainer)->backend().Synchronize((*trainer)->stream());
  PlannedTraining job{options, tokens, tokens};
  Compare(model.c_str(), before, PlanMemory(TestSource(model), job));
}

TEST_F(CudaMemorySlow, OfGenerate) {
  EXPECT_EXIT(Generate("random:smollm2-135m:q4_1", Compute::kF32, 4096), testing::ExitedWithCode(0),
              "");
  EXPECT_EXIT(Generate("random:llama-1.2b", Compute::kBF16, 8192), testing::ExitedWithCode(0), "");
}

TEST_F(CudaMemorySlow, OfATrainingStep) {
  EXPECT_EXIT(Train("random:smollm2-135m", 4096), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(Train("random:llama-1.2b", 8192), testing::ExitedWithCode(0), "");
}

// Negative control: a text of another length is not foreseen so.
TEST_F(CudaMemorySlow, AnotherLengthIsSeen) {
  EXPECT_EXIT(Generate("random:llama-1.2b", Compute::kBF16, 8192, /*planned=*/32768),
              testing::ExitedWithCode(1), "");
}

}  // namespace
}  // namespace toroid
