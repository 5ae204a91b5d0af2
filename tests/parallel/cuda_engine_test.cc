// The engine on a GPU: the CPU's numbers and tokens, by the same model code.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/backend_side.h"
#include "tests/support/engine_on_mesh.h"

namespace toroid {
namespace {

using CudaEngine = OnGpu;

const char* const kModels[] = {"random:tiny-gqa",   "random:tiny-mqa",  "random:tiny-mistral",
                               "random:palm-tiny",  "random:gpt3-tiny", "random:tiny-qwen2",
                               "random:tiny-qwen3", "random:tiny-1m"};

ScoreResult ScoreText(const EngineCase& c, int64_t tokens) {
  return ScoreOn(c, {MixedIds(tokens, TestSource(c.model)->config.vocab), 4, true});
}

GenerateResult GenerateText(const EngineCase& c, int64_t prompt) {
  GenerateRequest request;
  request.prompt_ids = MixedIds(prompt, TestSource(c.model)->config.vocab);
  request.max_tokens = 48;
  request.ignore_eos = true;
  request.logprobs = true;
  return GenerateOn(c, request);
}

TEST(DeviceTest, WhatAGpuCannotDoIsRefusedByName) {
  LoadRequest load;
  load.model = "random:tiny-gqa";
  load.device = Device::kCuda;
  load.compute = Compute::kF64;
  const auto f64 =
      Engine::Create(std::make_unique<SelfCommunicator>(), TestSource(load.model), load, nullptr);
  EXPECT_EQ(f64.status().code(), absl::StatusCode::kInvalidArgument);
  load.compute = Compute::kF32;
  if (CudaDevices() == 0) {
    const auto none =
        Engine::Create(std::make_unique<SelfCommunicator>(), TestSource(load.model), load, nullptr);
    EXPECT_EQ(none.status().code(), absl::StatusCode::kFailedPrecondition) << none.status();
  }
  load.device = Device::kAuto;  // always finds something
  const auto some =
      Engine::Create(std::make_unique<SelfCommunicator>(), TestSource(load.model), load, nullptr);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ((*some)->stream().native != nullptr, CudaDevices() > 0);
}

// Kept in their blocks on both sides; the last has the shape of SmolLM2-135M.
const char* const kQuantised[] = {"random:tiny-1m:q8_0",  "random:tiny-1m:q4_0",
                                  "random:tiny-1m:q4_1",  "random:tiny-gqa:q8_0",
                                  "random:tiny-gqa:q4_1", "random:smollm2-135m:q4_1"};

TEST_F(CudaEngine, ScoresAsTheCpuInFloat64) {
  std::vector<std::string> models(std::begin(kModels), std::end(kModels));
  models.insert(models.end(), std::begin(kQuantised), std::end(kQuantised) - 1);
  for (const std::string& model : models) {
    for (int64_t tokens : {1, 7, 100, 300}) {
      SCOPED_TRACE(testing::Message() << model << " " << tokens);
      const ScoreResult truth = ScoreText({.model = model}, tokens);
      const ScoreResult narrow = ScoreText({.model = model, .compute = Compute::kF32}, tokens);
      const ScoreResult gpu =
          ScoreText({.model = model, .compute = Compute::kF32, .device = Device::kCuda}, tokens);
      double cpu_error = 1e-5, gpu_error = 0;
      for (size_t i = 0; i < truth.logprobs.size(); ++i) {
        cpu_error = std::max(cpu_error, std::abs(narrow.logprobs[i] - truth.logprobs[i]));
        gpu_error = std::max(gpu_error, std::abs(gpu.logprobs[i] - truth.logprobs[i]));
      }
      EXPECT_LE(gpu_error, 4 * cpu_error);
    }
  }
}

TEST_F(CudaEngine, MakesTheCpusTokens) {
  for (const char* model : kModels) {
    for (int64_t prompt : {1, 20, 240}) {  // the last past 256 keys, where a decode step grows
      SCOPED_TRACE(testing::Message() << model << " " << prompt);
      const EngineCase cpu{.model = model, .compute = Compute::kF32};
      EngineCase gpu = cpu;
      gpu.device = Device::kCuda;
      gpu.shuffle = 3;  // pages in any physical order
      const GenerateResult a = GenerateText(cpu, prompt), b = GenerateText(gpu, prompt);
      ASSERT_EQ(a.ids.size(), 48u);
      if (a.min_margin > 1e-3) {
        EXPECT_EQ(a.ids, b.ids) << "margin " << a.min_margin;
      }
    }
  }
}

// The CPU's 48 tokens from the blocks as they are stored, in as many bytes.
TEST_F(CudaEngine, QuantisedWeightsKeepTheirTypeAndMakeTheCpusTokens) {
  for (const char* model : kQuantised) {
    int compared = 0;
    for (int64_t prompt : {1, 20, 240}) {
      SCOPED_TRACE(testing::Message() << model << " " << prompt);
      EngineCase cpu{.model = model, .compute = Compute::kF32, .context = 320, .threads = 4};
      EngineCase gpu = cpu;
      gpu.device = Device::kCuda;
      const GenerateResult a = GenerateText(cpu, prompt), b = GenerateText(gpu, prompt);
      ASSERT_EQ(a.ids.size(), 48u);
      EXPECT_EQ(a.report.memory.weights, b.report.memory.weights);
      if (a.min_margin <= 1e-3) continue;
      EXPECT_EQ(a.ids, b.ids) << "margin " << a.min_margin;
      ++compared;
    }
    EXPECT_GE(compared, 1) << model;
  }
  const auto bytes = [](const char* model) {
    return GenerateText({.model = model, .compute = Compute::kF32, .device = Device::kCuda}, 1)
        .report.memory.weights[0];
  };
  // 4.5, 5 and 8.5 bits a weight of tiny-1m; vectors, pads and the table of heads besides.
  const double whole = double(bytes("random:tiny-1m"));
  EXPECT_NEAR(double(bytes("random:tiny-1m:q8_0")) / whole, 8.5 / 32, 3e-3);
  EXPECT_NEAR(double(bytes("random:tiny-1m:q4_0")) / whole, 4.5 / 32, 3e-3);
  EXPECT_NEAR(double(bytes("random:tiny-1m:q4_1")) / whole, 5.0 / 32, 3e-3);
}

// 14 answers of seven prompts that end at different steps: the batch is rounded to 16 rows, 8, 4,
// ..
GenerateRequest EndingAnswers(int64_t vocab) {
  GenerateRequest request;
  request.prompt_ids = MixedIds(250, vocab);  // past 256 keys while the others are far below
  for (int64_t p = 1; p < 7; ++p) {
    request.more_prompt_ids.push_back(MixedIds(3 + 16 * p, vocab));
    request.more_prompt_ids.back()[0] = int32_t(p);
  }
  request.n = 2;  // alike, on pages that they share
  request.max_tokens = 48;
  for (int32_t id = 0; id < 12; ++id) request.stop_ids.push_back(id);
  return request;
}

TEST_F(CudaEngine, ABatchMakesTheCpusTokens) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny", "random:tiny-mistral"}) {
    const EngineCase cpu{.model = model, .compute = Compute::kF32};
    EngineCase gpu = cpu;
    gpu.device = Device::kCuda;
    gpu.shuffle = 3;
    GenerateRequest request = EndingAnswers(TestSource(model)->config.vocab);
    request.batch = 1;
    const GenerateResult alone = GenerateOn(cpu, request);
    int compared = 0;
    for (const int64_t batch : {3, 7, 14}) {
      request.batch = batch;
      const GenerateResult together = GenerateOn(gpu, request);
      ASSERT_EQ(together.more.size(), 13u);
      EXPECT_EQ(together.report.memory.peak, together.report.memory.predicted);
      for (size_t i = 0; i < 13; ++i) {
        if (alone.more[i].min_margin <= 1e-3) continue;
        EXPECT_EQ(together.more[i].ids, alone.more[i].ids) << model << " " << batch << " " << i;
        ++compared;
      }
    }
    EXPECT_GE(compared, 9) << model;
  }
}

// A penalty too small to change a logit makes the host draw, of the same logits.
TEST_F(CudaEngine, TheDeviceDrawsTheHostsTokens) {
  GenerateRequest request;
  const EngineCase c{.model = "random:tiny-1m", .compute = Compute::kBF16, .device = Device::kCuda};
  request.prompt_ids = MixedIds(30, TestSource(c.model)->config.vocab);
  request.n = 3;
  request.max_tokens = 24;
  request.ignore_eos = true;
  request.logprobs = true;
  for (const SamplingParams& sampling :
       {SamplingParams{}, SamplingParams{.temperature = 1.5, .seed = 3},
        SamplingParams{.temperature = 2, .top_p = 0.9, .top_k = 60, .min_p = 0.01, .seed = 4}}) {
    SCOPED_TRACE(sampling.temperature);
    request.sampling = sampling;
    const GenerateResult device = GenerateOn(c, request);
    request.sampling.presence_penalty = 1e-300;
    const GenerateResult host = GenerateOn(c, request);
    ASSERT_EQ(host.ids.size(), 24u);
    ASSERT_EQ(host.more.size(), 2u);
    EXPECT_EQ(device.ids, host.ids) << host.min_margin;
    EXPECT_EQ(device.more[1].ids, host.more[1].ids) << host.more[1].min_margin;
    for (size_t i = 0; i < 24; ++i) EXPECT_NEAR(device.logprobs[i], host.logprobs[i], 1e-9);
    if (sampling.temperature > 0) {
      EXPECT_NE(device.ids, device.more[1].ids);  // negative control: sequences draw apart
    }
  }
}

// Negative control: with the tables of two rows exchanged the tokens differ.
TEST_F(CudaEngine, SwappedTablesOfABatchAreSeen) {
  const EngineCase c{.compute = Compute::kF32, .device = Device::kCuda};
  GenerateRequest request;  // two texts of one length: the batch is of two rows
  request.prompt_ids = MixedIds(40, TestSource(c.model)->config.vocab);
  request.more_prompt_ids = {{request.prompt_ids.rbegin(), request.prompt_ids.rend()}};
  request.max_tokens = 24;
  request.ignore_eos = true;
  const GenerateResult whole = GenerateOn(c, request);
  GenerateResult swapped;
  OnEngines(c, [&](Engine& engine) {
    engine.SwapTables();
    swapped = *engine.Generate(request, {});
  });
  EXPECT_NE(swapped.ids, whole.ids);
}

TEST_F(CudaEngine, InBf16IsNearAndNotTheSame) {
  for (const char* model : {"random:tiny-gqa", "random:tiny-1m"}) {
    const ScoreResult truth = ScoreText({.model = model, .compute = Compute::kBF16}, 100);
    const ScoreResult gpu =
        ScoreText({.model = model, .compute = Compute::kBF16, .device = Device::kCuda}, 100);
    EXPECT_NEAR(gpu.mean_nll, truth.mean_nll, 0.02);
    EXPECT_GT(std::abs(gpu.mean_nll - truth.mean_nll), 1e-9);  // negative control
  }
}

TEST_F(CudaEngine, DecodesInBf16) {
  const EngineCase narrow{.compute = Compute::kBF16, .device = Device::kCuda};
  const GenerateResult made = GenerateText(narrow, 20);
  ASSERT_EQ(made.ids.size(), 48u);
  std::vector<int32_t> ids = MixedIds(20, TestSource(narrow.model)->config.vocab);
  ids.insert(ids.end(), made.ids.begin(), made.ids.end());
  const ScoreResult scored = ScoreOn(narrow, {ids, 0, true});
  for (int i = 0; i < 48; ++i) EXPECT_NEAR(scored.logprobs[19 + i], made.logprobs[i], 0.1);
}

TEST_F(CudaEngine, ForeseesItsMemory) {
  OnEngines({.compute = Compute::kF32, .device = Device::kCuda}, [](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = MixedIds(50, engine.config().vocab);
    request.max_tokens = 20;
    const auto result = engine.Generate(request, {});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->report.memory.peak, result->report.memory.predicted);
  });
}

// Two ranks: a GPU each where there are two, else one that they share.
EngineCase OnTwoRanks(const char* model, MeshShape mesh) {
  EngineCase c{.model = model, .mesh = mesh, .compute = Compute::kF32, .device = Device::kCuda};
  c.share_gpus = CudaDevices() < 2;
  return c;
}

const MeshShape kTwoRanks[] = {{1, 2, 1}, {1, 1, 2}, {2, 1, 1}};

TEST_F(CudaEngine, ScoresOnTwoRanksAsTheCpuInFloat64) {
  for (const char* model : kModels) {
    for (const MeshShape& mesh : kTwoRanks) {
      for (int64_t tokens : {1, 7, 300}) {
        SCOPED_TRACE(testing::Message() << model << " " << ToString(mesh) << " " << tokens);
        const ScoreResult truth = ScoreText({.model = model}, tokens);
        const ScoreResult narrow = ScoreText({.model = model, .compute = Compute::kF32}, tokens);
        const ScoreResult gpu = ScoreText(OnTwoRanks(model, mesh), tokens);
        double cpu_error = 1e-5, gpu_error = 0;
        for (size_t i = 0; i < truth.logprobs.size(); ++i) {
          cpu_error = std::max(cpu_error, std::abs(narrow.logprobs[i] - truth.logprobs[i]));
          gpu_error = std::max(gpu_error, std::abs(gpu.logprobs[i] - truth.logprobs[i]));
        }
        EXPECT_LE(gpu_error, 4 * cpu_error);
      }
    }
  }
}

TEST_F(CudaEngine, TwoRanksMakeTheCpusTokens) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny", "random:tiny-mistral"}) {
    for (const MeshShape& mesh : kTwoRanks) {
      SCOPED_TRACE(testing::Message() << model << " " << ToString(mesh));
      const GenerateResult a = GenerateText({.model = model, .compute = Compute::kF32}, 100);
      const GenerateResult b = GenerateText(OnTwoRanks(model, mesh), 100);
      ASSERT_EQ(b.ids.size(), 48u);
      if (a.min_margin > 1e-3) {
        EXPECT_EQ(a.ids, b.ids) << "margin " << a.min_margin;
      }
      EXPECT_EQ(b.report.memory.peak, b.report.memory.predicted);
    }
  }
}

// Negative control: with a page of the cache lost the tokens differ.
TEST_F(CudaEngine, ALostPageOnOneRankIsSeen) {
  const EngineCase c = OnTwoRanks("random:tiny-gqa", {1, 2, 1});
  GenerateRequest request;
  request.prompt_ids = MixedIds(100, TestSource(c.model)->config.vocab);
  request.max_tokens = 48;
  request.ignore_eos = true;
  GenerateResult lost;
  OnEngines(c, [&](Engine& engine) {
    if (engine.mesh().rank() == 1) engine.LosePage(1);
    const auto made = engine.Generate(request, {});
    ASSERT_TRUE(made.ok()) << made.status();
    if (engine.mesh().rank() == 0) lost = *made;
  });
  EXPECT_NE(lost.ids, GenerateText(c, 100).ids);
}

}  // namespace
}  // namespace toroid
