// The engine on meshes of threads: the same numbers on every mesh, exact counters, memory foreseen.
#include "parallel/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

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

// Three prompts of different lengths with three sampled answers each.
GenerateRequest NineAnswers(int64_t vocab) {
  GenerateRequest request;
  request.prompt_ids = MixedIds(37, vocab);
  request.more_prompt_ids = {MixedIds(5, vocab), MixedIds(50, vocab)};
  request.n = 3;
  request.max_tokens = 20;
  request.sampling.temperature = 1;
  request.sampling.seed = 11;
  request.ignore_eos = true;
  request.prompt_logprobs = 2;
  return request;
}

std::vector<GenerateResult> Flat(const GenerateResult& result) {
  std::vector<GenerateResult> all = {result};
  all.insert(all.end(), result.more.begin(), result.more.end());
  return all;
}

TEST(EngineTest, SeveralAnswersAreEqualOnEveryMesh) {
  const GenerateRequest request = NineAnswers(TestSource("random:tiny-gqa")->config.vocab);
  const std::vector<GenerateResult> one = Flat(GenerateOn({}, request));
  ASSERT_EQ(one.size(), 9u);
  std::set<std::vector<int32_t>> texts;
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].prompt_index, int64_t(i / 3));
    EXPECT_EQ(one[i].index, int64_t(i % 3));
    EXPECT_EQ(one[i].prompt_tokens, i < 3 ? 37 : i < 6 ? 5 : 50);
    EXPECT_EQ(one[i].ids.size(), 20u);
    EXPECT_EQ(one[i].prompt_logprobs, one[i / 3 * 3].prompt_logprobs);
    texts.insert(one[i].ids);
  }
  EXPECT_EQ(texts.size(), 9u);  // answers to one prompt draw different numbers
  for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{1, 1, 2}, MeshShape{1, 2, 2}}) {
    SCOPED_TRACE(ToString(mesh));
    const GenerateResult result = GenerateOn({.mesh = mesh, .shuffle = 5}, request);
    const std::vector<GenerateResult> many = Flat(result);
    ASSERT_EQ(many.size(), 9u);
    for (size_t i = 0; i < many.size(); ++i) EXPECT_EQ(many[i].ids, one[i].ids) << i;
  }
}

// What answers share of the cache holds nothing of the others: each answer is that of a request of
// its own. Which number of the sequence it draws from decides alone.
TEST(EngineTest, AnAnswerDoesNotDependOnTheOthers) {
  GenerateRequest request = NineAnswers(TestSource("random:tiny-gqa")->config.vocab);
  const EngineCase c{.mesh = {1, 2, 1}};
  const std::vector<GenerateResult> sampled = Flat(GenerateOn(c, request));
  request.sampling.temperature = 0;
  const std::vector<GenerateResult> greedy = Flat(GenerateOn(c, request));
  for (size_t p = 0; p < 3; ++p) {
    EXPECT_EQ(greedy[3 * p + 1].ids, greedy[3 * p].ids);
    EXPECT_EQ(greedy[3 * p + 2].ids, greedy[3 * p].ids);
    EXPECT_NEAR(greedy[3 * p + 2].min_margin, greedy[3 * p].min_margin, 1e-9);
    GenerateRequest alone = request;
    if (p > 0) alone.prompt_ids = request.more_prompt_ids[p - 1];
    alone.more_prompt_ids.clear();
    alone.n = 1;
    const GenerateResult single = GenerateOn(c, alone);
    EXPECT_TRUE(single.more.empty());
    EXPECT_EQ(single.ids, greedy[3 * p].ids);
    alone.sampling.temperature = 1;  // sequence 0: the first answer to the first prompt alone
    EXPECT_EQ(GenerateOn(c, alone).ids == sampled[3 * p].ids, p == 0);
  }
}

TEST(EngineTest, TimingAndTrafficAreOfEachAnswer) {
  const GenerateRequest request = NineAnswers(TestSource("random:tiny-gqa")->config.vocab);
  const EngineCase c{.mesh = {1, 2, 1}};
  const std::vector<GenerateResult> all = Flat(GenerateOn(c, request));
  GenerateRequest alone = request;
  alone.more_prompt_ids.clear();
  alone.n = 1;
  const GenerateResult single = GenerateOn(c, alone);
  for (const GenerateResult& answer : all) {
    const RunReport& report = answer.report;
    ASSERT_EQ(report.comm[0].axis, "ring");
    const bool first = answer.index == 0;
    EXPECT_EQ(report.timing.prefill_s > 0, first);
    const bool one_page = answer.prompt_tokens <= c.page_tokens;  // then one rank has the prompt
    EXPECT_EQ(report.comm[0].prefill_bytes_sent[0] > 0, first && !one_page);
    EXPECT_GT(report.comm[0].bytes_sent[0], report.comm[0].prefill_bytes_sent[0]);
    EXPECT_EQ(report.memory.peak.size(), 2u);
    EXPECT_GE(report.memory.predicted[0], report.memory.peak[0]);
    EXPECT_LE(double(report.memory.predicted[0]), 1.1 * double(report.memory.peak[0]));
    // All answers of 20 tokens decode with the same bytes; those of prefill are of the prompt.
    EXPECT_EQ(report.comm[0].bytes_sent[0] - report.comm[0].prefill_bytes_sent[0],
              single.report.comm[0].bytes_sent[0] - single.report.comm[0].prefill_bytes_sent[0]);
  }
  EXPECT_EQ(all[0].report.comm[0].bytes_sent, single.report.comm[0].bytes_sent);
}

TEST(EngineTest, CancelInTheMiddleKeepsTheAnswersBefore) {
  OnEngines({.mesh = {1, 2, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
    GenerateRequest request = NineAnswers(engine.config().vocab);
    request.batch = 1;
    int64_t prompt_index = 0, index = 0, tokens = 0;
    EngineEvents events;
    events.on_token = [&](const TokenEvent& token) {
      tokens = token.prompt_index == prompt_index && token.index == index ? tokens + 1 : 1;
      prompt_index = token.prompt_index;
      index = token.index;
    };
    events.cancelled = [&] { return prompt_index == 1 && index == 1 && tokens == 4; };
    const auto cancelled = engine.Generate(request, events);
    ASSERT_TRUE(cancelled.ok());
    const std::vector<GenerateResult> answers = Flat(*cancelled);
    ASSERT_EQ(answers.size(), 5u);
    EXPECT_EQ(answers[3].finish, FinishReason::kLength);
    EXPECT_EQ(answers[4].finish, FinishReason::kCancelled);
    EXPECT_EQ(answers[4].prompt_index, 1);
    EXPECT_EQ(answers[4].index, 1);
    if (engine.mesh().rank() == 0) {
      EXPECT_EQ(answers[3].ids.size(), 20u);
      EXPECT_GE(answers[4].ids.size(), 4u);
      EXPECT_LT(answers[4].ids.size(), 20u);
    }
    const auto next = engine.Generate(request, {});
    ASSERT_TRUE(next.ok());
    EXPECT_EQ(next->more.size(), 8u);
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

TEST(EngineTest, TheNumberOfAnswersHasLimits) {
  OnEngines({.mesh = {1, 2, 1}, .compute = Compute::kF32}, [&](Engine& engine) {
    GenerateRequest request;
    request.prompt_ids = {1};
    request.max_tokens = 1;
    const auto refusal = [&] {
      return std::string(engine.Generate(request, {}).status().message());
    };
    request.n = 0;
    EXPECT_NE(refusal().find("n is 0"), std::string::npos);
    request.n = kMostAnswers;
    EXPECT_EQ(refusal(), "");
    request.more_prompt_ids = {{2}};
    EXPECT_NE(refusal().find("2 prompts with n = 1024"), std::string::npos);
    request.n = INT64_MAX;
    EXPECT_NE(refusal().find("at most 1024"), std::string::npos);
    request.n = 1;
    request.more_prompt_ids = {{2}, {}};
    EXPECT_NE(refusal().find("prompt 2: the prompt has no tokens"), std::string::npos);
  });
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
