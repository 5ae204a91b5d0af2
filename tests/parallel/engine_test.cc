// The engine on meshes of threads: the same numbers on every mesh, exact counters, memory foreseen.
#include "parallel/engine.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/engine_on_mesh.h"
#include "tests/support/golden.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

ScoreResult ScoreText(const EngineCase& c, int64_t tokens) {
  return ScoreOn(c, {MixedIds(tokens, TestSource(c.model)->config.vocab), 8, true});
}

GenerateResult GenerateText(const EngineCase& c, int64_t prompt, int64_t most,
                            double temperature = 0) {
  GenerateRequest request;
  request.prompt_ids = MixedIds(prompt, TestSource(c.model)->config.vocab);
  request.max_tokens = most;
  request.prompt_logprobs = 5;
  request.logprobs = true;
  request.sampling.temperature = temperature;
  request.sampling.seed = 5;
  return GenerateOn(c, request);
}

TEST(EngineTest, ScoreIsTheSameOnEveryMeshInFloat64) {
  for (const char* model : {"random:tiny-gqa", "random:tiny-qwen2", "random:tiny-qwen3"}) {
    const ScoreResult one = ScoreText({.model = model}, 41);
    ASSERT_EQ(one.logprobs.size(), 40u);
    for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{1, 3, 1}, MeshShape{1, 1, 2},
                                 MeshShape{1, 2, 2}, MeshShape{2, 1, 1}, MeshShape{1, 5, 1}}) {
      SCOPED_TRACE(std::string(model) + " " + ToString(mesh));
      ExpectClose(ScoreText({.model = model, .mesh = mesh}, 41), one, 1e-9);
    }
  }
}

TEST(EngineTest, AnyTensorUpToTheQueryHeads) {
  const ScoreResult one = ScoreText({}, 19);
  for (int64_t tensor : {3, 4, 5, 9}) {
    SCOPED_TRACE(tensor);
    ExpectClose(ScoreText({.mesh = {1, 1, tensor}}, 19), one, 1e-9);
  }
}

TEST(EngineTest, AnyLengthOnAnyLayout) {
  for (int64_t length : {1, 2, 7, 65}) {
    const ScoreResult one = ScoreText({}, length);
    for (const LayoutRule& layout : {kContiguous, kZigzag, kStriped1, kPages}) {
      SCOPED_TRACE(std::to_string(length) + " " + ToString(layout));
      ExpectClose(ScoreText({.mesh = {1, 4, 1}, .layout = layout}, length), one, 1e-9);
    }
  }
}

TEST(EngineTest, AnotherSeedIsSeen) {  // negative control of the comparisons above
  const ScoreResult one = ScoreText({}, 19);
  EXPECT_GT(std::abs(ScoreText({.model = "random:tiny-mha"}, 19).mean_nll - one.mean_nll), 1e-6);
}

TEST(EngineTest, DecodeEqualsScoreOfTheWholeText) {
  // Cached = uncached: the log p of each token made equals its log p when the whole text is scored.
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 2, 2}}) {
    const GenerateResult made = GenerateText({.mesh = mesh}, 21, 30);
    ASSERT_EQ(made.ids.size(), 30u);
    OnEngines({}, [&](Engine& engine) {
      std::vector<int32_t> ids = MixedIds(21, engine.config().vocab);
      ids.insert(ids.end(), made.ids.begin(), made.ids.end());
      const auto scored = engine.Score({ids, 0, true}, {});
      ASSERT_TRUE(scored.ok());
      for (int i = 0; i < 30; ++i) EXPECT_NEAR(scored->logprobs[20 + i], made.logprobs[i], 1e-9);
      for (const auto& [position, log_p] : made.prompt_logprobs) {
        EXPECT_NEAR(scored->logprobs[position - 1], log_p, 1e-9);
      }
    });
  }
}

// K and V are narrowed once and cached so: what is decoded sees what the prompt's own rows saw.
TEST(EngineTest, DecodesInBf16AsItScores) {
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 2}}) {
    const EngineCase narrow{.mesh = mesh, .compute = Compute::kBF16};
    const GenerateResult made = GenerateText(narrow, 21, 30);
    ASSERT_EQ(made.ids.size(), 30u);
    OnEngines(narrow, [&](Engine& engine) {
      std::vector<int32_t> ids = MixedIds(21, engine.config().vocab);
      ids.insert(ids.end(), made.ids.begin(), made.ids.end());
      const auto scored = engine.Score({ids, 0, true}, {});
      ASSERT_TRUE(scored.ok());
      if (engine.mesh().rank() != 0) return;
      for (int i = 0; i < 30; ++i) EXPECT_NEAR(scored->logprobs[20 + i], made.logprobs[i], 0.05);
      const auto wide = ScoreOn({.compute = Compute::kF32}, {ids, 0, true});
      EXPECT_GT(std::abs(wide.mean_nll - scored->mean_nll), 1e-7);  // it is narrow
    });
  }
}

TEST(EngineTest, TokensAreEqualOnEveryMesh) {
  for (double temperature : {0.0, 0.8}) {
    const EngineCase base{.compute = Compute::kF32};
    const GenerateResult one = GenerateText(base, 37, 24, temperature);
    EXPECT_GT(one.min_margin, 1e-4);
    for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{1, 4, 1}, MeshShape{1, 1, 3},
                                 MeshShape{1, 2, 2}, MeshShape{2, 1, 2}}) {
      SCOPED_TRACE(ToString(mesh));
      EXPECT_EQ(GenerateText({.mesh = mesh, .compute = Compute::kF32}, 37, 24, temperature).ids,
                one.ids);
    }
  }
}

TEST(EngineTest, PagesInAnyOrderAndOfAnySizeGiveTheSameBits) {
  const GenerateResult one = GenerateText({.compute = Compute::kF32}, 100, 20);
  for (int64_t page : {16, 64, 1024}) {
    EngineCase c{.compute = Compute::kF32, .page_tokens = page, .shuffle = 11};
    const GenerateResult paged = GenerateText(c, 100, 20);
    EXPECT_EQ(paged.ids, one.ids);
    EXPECT_EQ(paged.logprobs, one.logprobs);  // bit for bit
  }
}

TEST(EngineTest, RingSendsEqualTheFormula) {
  constexpr int64_t kTokens = 53, R = 3;
  const EngineCase c{.mesh = {1, R, 2}, .compute = Compute::kF32};
  const GenerateResult made = GenerateText(c, kTokens, 2);
  const auto source = TestSource(c.model);
  const ModelConfig& config = source->config;
  const TokenLayout layout(c.layout, {kTokens}, 1, R);
  const AxisReport* ring = nullptr;
  for (const AxisReport& axis : made.report.comm) {
    if (axis.axis == "ring") ring = &axis;
  }
  ASSERT_NE(ring, nullptr);
  for (int64_t rank = 0; rank < R * 2; ++rank) {
    const int64_t r = rank / 2;
    const HeadLayout heads(config.query_heads, config.kv_heads, rank % 2, 2);
    int64_t tokens = 0;
    for (int64_t j = 0; j < R; ++j) tokens += j == (r + 1) % R ? 0 : layout.count(0, j);
    EXPECT_EQ(ring->prefill_bytes_sent[rank],
              config.layers * 2 * tokens * heads.kv_count() * config.head_dim * 4)
        << "rank " << rank;
  }
}

TEST(EngineTest, MemoryIsForeseenAndKvIsSplitByTheRing) {
  const EngineCase one{.compute = Compute::kF32}, two{.mesh = {1, 2, 1}, .compute = Compute::kF32};
  const GenerateResult a = GenerateText(one, 300, 8), b = GenerateText(two, 300, 8);
  for (const GenerateResult* result : {&a, &b}) {
    const MemoryReport& memory = result->report.memory;
    for (size_t i = 0; i < memory.peak.size(); ++i) {
      EXPECT_GE(memory.predicted[i], memory.peak[i]);
      EXPECT_LE(double(memory.predicted[i]), 1.1 * double(memory.peak[i]));
    }
  }
  const auto source = TestSource(one.model);
  const int64_t page =
      2 * source->config.layers * 16 * source->config.kv_heads * source->config.head_dim * 4;
  EXPECT_LE(std::abs(a.report.memory.kv[0] - 2 * b.report.memory.kv[0]), 2 * page);
}

TEST(EngineTest, BlockScratchDoesNotGrowWithTheText) {
  std::vector<double> scratch;
  for (int64_t tokens = 64; tokens <= 2048; tokens *= 2) {
    OnEngines({.mesh = {1, 2, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
      GenerateRequest request;
      request.prompt_ids = MixedIds(tokens, engine.config().vocab);
      request.max_tokens = 2;
      const auto use = engine.ForeseeGenerate(request);
      ASSERT_TRUE(use.ok());
      if (engine.mesh().rank() == 0) scratch.push_back(double(use->block_scratch));
    });
  }
  // From one whole token block (512 tokens a rank) on it is constant.
  EXPECT_EQ(scratch[4], scratch[5]);
}

TEST(EngineTest, BadRequestsAreRefusedByEveryRankAlike) {
  OnEngines({.mesh = {1, 2, 1}}, [&](Engine& engine) {
    GenerateRequest request;
    EXPECT_EQ(engine.Generate(request, {}).status().code(), absl::StatusCode::kInvalidArgument);
    request.prompt_ids = {int32_t(engine.config().vocab)};
    EXPECT_EQ(engine.Generate(request, {}).status().code(), absl::StatusCode::kInvalidArgument);
    request.prompt_ids = {1};
    request.max_tokens = engine.context();
    const auto status = engine.Generate(request, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
    EXPECT_NE(status.message().find(std::to_string(engine.context())), absl::string_view::npos);
  });
}

TEST(EngineTest, CancelStopsAndTheNextRequestRuns) {
  OnEngines({.mesh = {1, 2, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = MixedIds(20, engine.config().vocab);
    request.max_tokens = 50;
    int tokens = 0;
    EngineEvents events;
    events.on_token = [&](const TokenEvent&) { ++tokens; };
    events.cancelled = [&] { return tokens >= 3; };
    const auto cancelled = engine.Generate(request, events);
    ASSERT_TRUE(cancelled.ok());
    EXPECT_EQ(cancelled->finish, FinishReason::kCancelled);
    // What was done until then is reported as that of a request that ended by itself.
    const RunReport& report = cancelled->report;
    EXPECT_EQ(report.mesh, (MeshShape{1, 2, 1}));
    if (engine.mesh().rank() == 0) {  // which alone has the tokens
      EXPECT_GT(report.timing.decode_tokens_per_s, 0);
    }
    EXPECT_EQ(report.memory.peak.size(), 2u);
    ASSERT_FALSE(report.comm.empty());
    EXPECT_EQ(report.comm[0].axis, "ring");
    EXPECT_GT(report.comm[0].bytes_sent[0], 0);
    request.max_tokens = 2;
    const auto next = engine.Generate(request, {});
    ASSERT_TRUE(next.ok());
    EXPECT_EQ(next->finish, FinishReason::kLength);
  });
}

TEST(EngineTest, CancelInPrefillReportsItsTraffic) {
  OnEngines({.mesh = {1, 2, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = MixedIds(64, engine.config().vocab);
    EngineEvents events;
    bool begun = false;
    events.on_progress = [&](const Progress& p) { begun = begun || p.done > 0; };
    events.cancelled = [&] { return begun; };
    const auto cancelled = engine.Generate(request, events);
    ASSERT_TRUE(cancelled.ok());
    EXPECT_EQ(cancelled->finish, FinishReason::kCancelled);
    EXPECT_TRUE(cancelled->ids.empty());
    EXPECT_EQ(cancelled->report.mesh, (MeshShape{1, 2, 1}));
    EXPECT_GT(cancelled->report.timing.prefill_s, 0);
    EXPECT_EQ(cancelled->report.timing.prefill_tokens_per_s, 0);  // not all of the prompt
    EXPECT_EQ(cancelled->report.memory.peak.size(), 2u);
  });
}

absl::Status Load(const std::string& model, MeshShape mesh, int64_t context) {
  absl::Status status;
  RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const bool first = world->rank() == 0;
    LoadRequest load;
    load.model = model;
    load.mesh = mesh;
    load.context = context;
    load.threads = 1;
    const auto engine = Engine::Create(std::move(world), TestSource(model), load, nullptr);
    if (first) status = engine.status();
  });
  return status;
}

TEST(EngineTest, AContextBeyondTheModelsReachIsRefused) {
  const std::string trained = GoldenModelPath("llama");  // 512 tokens, no scaling
  for (const MeshShape mesh : {MeshShape{}, MeshShape{1, 2, 1}}) {
    EXPECT_TRUE(Load(trained, mesh, 512).ok());
    const absl::Status refused = Load(trained, mesh, 513);
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    for (const char* said : {"513", "512", "--context"}) {
      EXPECT_NE(refused.message().find(said), absl::string_view::npos) << refused;
    }
  }
  // A base that follows the length reaches anywhere, and random weights were trained for nothing.
  EXPECT_TRUE(Load(GoldenModelPath("llama_dynamic"), {}, 100000).ok());
  EXPECT_TRUE(Load("random:tiny-gqa", {}, 100000).ok());
}

TEST(EngineTest, StopIdsLieInTheVocabulary) {
  OnEngines({.mesh = {1, 1, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = {1};
    request.max_tokens = 1;
    request.stop_ids = {int32_t(engine.config().vocab) - 1};
    EXPECT_TRUE(engine.Generate(request, {}).ok());
    request.stop_ids = {int32_t(engine.config().vocab)};
    EXPECT_EQ(engine.Generate(request, {}).status().code(), absl::StatusCode::kInvalidArgument);
    request.stop_ids = {-1};
    EXPECT_EQ(engine.Generate(request, {}).status().code(), absl::StatusCode::kInvalidArgument);
  });
}

}  // namespace
}  // namespace toroid
