// Answers that are made together are those that each would be alone: on meshes, in batches of
// awkward sizes, ending at different steps, in memory that is foreseen to the byte.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/support/engine_on_mesh.h"
#include "tests/support/golden.h"

namespace toroid {
namespace {

std::vector<GenerateResult> Flat(const GenerateResult& result) {
  std::vector<GenerateResult> all = {result};
  all.insert(all.end(), result.more.begin(), result.more.end());
  return all;
}

// `prompts` prompts of different lengths, from below a page to several; n answers to each.
GenerateRequest Several(int64_t prompts, int64_t n, int64_t batch,
                        const std::string& model = "random:tiny-gqa") {
  const int64_t vocab = TestSource(model)->config.vocab;
  GenerateRequest request;
  for (int64_t p = 0; p < prompts; ++p) {
    std::vector<int32_t> ids = MixedIds(3 + 16 * (p % 4) + p, vocab);
    ids[0] = int32_t(p);  // the beginnings differ
    if (p == 0) {
      request.prompt_ids = std::move(ids);
    } else {
      request.more_prompt_ids.push_back(std::move(ids));
    }
  }
  request.n = n;
  request.batch = batch;
  request.max_tokens = 20;
  request.ignore_eos = true;
  request.logprobs = true;
  return request;
}

// The same, sampled, with so many ids that end an answer that they end at many steps.
GenerateRequest Ending(GenerateRequest request) {
  request.sampling.temperature = 1;
  request.sampling.seed = 3;
  for (int32_t id = 0; id < 40; ++id) request.stop_ids.push_back(id);
  return request;
}

void ExpectSame(const GenerateResult& a, const GenerateResult& b, double tolerance) {
  const std::vector<GenerateResult> as = Flat(a), bs = Flat(b);
  ASSERT_EQ(as.size(), bs.size());
  for (size_t i = 0; i < as.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(as[i].prompt_index, bs[i].prompt_index);
    EXPECT_EQ(as[i].index, bs[i].index);
    EXPECT_EQ(as[i].ids, bs[i].ids);
    EXPECT_EQ(as[i].finish, bs[i].finish);
    ASSERT_EQ(as[i].logprobs.size(), bs[i].logprobs.size());
    for (size_t t = 0; t < as[i].logprobs.size(); ++t) {
      EXPECT_NEAR(as[i].logprobs[t], bs[i].logprobs[t], tolerance);
    }
  }
}

TEST(BatchTest, AnyBatchGivesTheAnswersOfEachAlone) {
  const GenerateResult alone = GenerateOn({}, Several(7, 1, 1));
  EXPECT_EQ(alone.batch, 1);
  for (const int64_t batch : {2, 3, 7, 0}) {
    SCOPED_TRACE(batch);
    const GenerateResult together = GenerateOn({}, Several(7, 1, batch));
    EXPECT_EQ(together.batch, batch == 0 ? 7 : batch);
    ExpectSame(together, alone, 1e-9);
  }
  // And of a request of its own.
  GenerateRequest one = Several(7, 1, 1);
  one.prompt_ids = one.more_prompt_ids[3];
  one.more_prompt_ids.clear();
  EXPECT_EQ(GenerateOn({}, one).ids, alone.more[3].ids);
}

TEST(BatchTest, OnEveryMeshWithPagesInAnyOrder) {
  const GenerateResult alone = GenerateOn({}, Several(3, 2, 1));
  for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{1, 3, 1}, MeshShape{1, 1, 2},
                               MeshShape{1, 1, 4}, MeshShape{1, 2, 2}, MeshShape{2, 1, 2}}) {
    for (const int64_t batch : {3, 6}) {  // fewer than, as many as, more than ranks of `tensor`
      SCOPED_TRACE(ToString(mesh) + " " + std::to_string(batch));
      ExpectSame(GenerateOn({.mesh = mesh, .shuffle = 9}, Several(3, 2, batch)), alone, 1e-9);
    }
  }
}

TEST(BatchTest, AnswersLeaveAndOthersTakeTheirRows) {
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 2}}) {
    const GenerateResult alone = GenerateOn({.mesh = mesh}, Ending(Several(4, 5, 1)));
    std::set<size_t> lengths;
    for (const GenerateResult& answer : Flat(alone)) lengths.insert(answer.ids.size());
    ASSERT_GT(lengths.size(), 5u);  // they do end at different steps
    for (const int64_t batch : {3, 7, 20}) {
      SCOPED_TRACE(ToString(mesh) + " " + std::to_string(batch));
      ExpectSame(GenerateOn({.mesh = mesh, .shuffle = 4}, Ending(Several(4, 5, batch))), alone,
                 1e-9);
    }
  }
}

TEST(BatchTest, InFloat32WhereverTheMarginTells) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny", "random:tiny-mistral"}) {
    const EngineCase c{.model = model, .compute = Compute::kF32};
    const auto alone = Flat(GenerateOn(c, Several(11, 1, 1, model)));
    const auto together = Flat(GenerateOn(c, Several(11, 1, 11, model)));  // not by matvec
    int64_t told = 0;
    for (size_t i = 0; i < alone.size(); ++i) {
      if (alone[i].min_margin <= 1e-3) continue;
      ++told;
      EXPECT_EQ(together[i].ids, alone[i].ids) << model << " " << i;
    }
    EXPECT_GT(told, 3);
  }
}

TEST(BatchTest, TextsWhoseFrequenciesDifferDoNotMeet) {
  const std::string model = GoldenModelPath("llama_dynamic");  // its base follows the length
  GenerateRequest request = Several(4, 2, 1, model);
  request.more_prompt_ids[1].resize(500, 1);
  const EngineCase c{.model = model, .context = 4096};
  request.max_tokens = 8;
  const GenerateResult alone = GenerateOn(c, request);
  request.batch = 8;
  ExpectSame(GenerateOn(c, request), alone, 1e-9);
}

// Negative control of all of the above.
TEST(BatchTest, TwoTablesSwappedAreSeen) {
  GenerateRequest request = Several(3, 1, 3);
  const GenerateResult whole = GenerateOn({}, request);
  GenerateResult swapped;
  OnEngines({}, [&](Engine& engine) {
    engine.SwapTables();
    swapped = *engine.Generate(request, {});
  });
  double worst = 0;
  for (size_t t = 0; t < 20; ++t) {
    worst = std::max(worst, std::abs(swapped.logprobs[t] - whole.logprobs[t]));
  }
  EXPECT_EQ(swapped.logprobs[0], whole.logprobs[0]);  // drawn from the prefill's logits
  EXPECT_GT(worst, 1e-4);
  EXPECT_EQ(swapped.more[1].ids, whole.more[1].ids);  // the third row is as it was
}

// Pages of `tokens`.
int64_t Pages(int64_t tokens) { return (tokens + 15) / 16; }

int64_t CacheBytes(const std::string& model, int64_t pages, int64_t rows, int64_t row_pages) {
  const ModelConfig& config = TestSource(model)->config;
  const int64_t page = 2 * config.layers * 16 * config.kv_heads * config.head_dim * 8;
  return pages * page + rows * row_pages * 17 * 4;
}

// Ranks that are threads need no buffers to exchange; the plan speaks of processes.
void ExpectForeseen(Engine& engine, const MemoryUse& foreseen, const GenerateResult& made) {
  const int rank = engine.mesh().rank();
  EXPECT_EQ(made.report.memory.peak[rank], foreseen.total() - foreseen.communicator);
  EXPECT_EQ(made.report.memory.scratch[rank], foreseen.scratch);
}

TEST(BatchTest, MemoryIsForeseenToTheByte) {
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 1, 4}, MeshShape{1, 2, 2}}) {
    for (const int64_t batch : {1, 3, 4, 6}) {
      SCOPED_TRACE(ToString(mesh) + " " + std::to_string(batch));
      OnEngines({.mesh = mesh}, [&](Engine& engine) {
        const GenerateRequest request = Several(3, 2, batch);
        const auto foreseen = engine.ForeseeGenerate(request);
        const auto made = engine.Generate(request, {});
        ASSERT_TRUE(foreseen.ok() && made.ok());
        ExpectForeseen(engine, *foreseen, *made);
      });
    }
  }
}

TEST(BatchTest, ThePoolHoldsWhatTheBatchMayHold) {
  // A prompt of 40 tokens has two full pages; with 20 more an answer has two of its own besides.
  GenerateRequest request;
  request.prompt_ids = MixedIds(40, 100);
  request.max_tokens = 20;
  request.ignore_eos = true;
  const auto pool = [&](int64_t n, int64_t batch) {
    request.n = n, request.batch = batch;
    int64_t kv = 0, used = 0;
    OnEngines({}, [&](Engine& engine) {
      kv = engine.ForeseeGenerate(request)->kv;
      const auto made = engine.Generate(request, {});
      ASSERT_TRUE(made.ok());
      used = made->report.memory.kv[0];
    });
    const int64_t pages = 2 + 2 * std::min(n, n > batch && n > 1 ? batch + 1 : batch);
    EXPECT_EQ(kv, CacheBytes("random:tiny-gqa", pages, std::min(n, batch), 4));
    EXPECT_EQ(used, CacheBytes("random:tiny-gqa", pages, 0, 0));
  };
  pool(1, 1);
  pool(5, 5);
  pool(5, 8);
  pool(5, 3);  // the prompt itself is kept for those that wait
  pool(5, 1);
  // Of different prompts the largest may meet: here 35, 34, 50 + 20 tokens and so on.
  GenerateRequest several = Several(5, 1, 2);
  std::vector<int64_t> pages;
  for (int64_t p = 0; p < 5; ++p) pages.push_back(Pages(int64_t(PromptAt(several, p).size()) + 20));
  std::sort(pages.rbegin(), pages.rend());
  OnEngines({}, [&](Engine& engine) {
    EXPECT_EQ(engine.ForeseeGenerate(several)->kv,
              CacheBytes("random:tiny-gqa", pages[0] + pages[1], 2, pages[0]));
  });
}

TEST(BatchTest, LessMemoryMakesSmallerBatches) {
  const GenerateRequest request = Several(7, 1, 7);
  const GenerateResult whole = GenerateOn({}, request);
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}}) {
    GenerateResult made;
    OnEngines({.mesh = mesh}, [&](Engine& engine) {
      GenerateRequest two = request;
      two.batch = 2;
      const int64_t bytes = engine.ForeseeGenerate(two)->kv;
      if (engine.mesh().rank() == int(mesh.size()) - 1) engine.LimitCache(bytes);  // only there
      const auto result = engine.Generate(request, {});
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->batch, 2);  // 7, 4, 2
      if (engine.mesh().rank() == 0) made = *result;
      ExpectForeseen(engine, *engine.ForeseeGenerate(two), *result);
    });
    ExpectSame(made, whole, 1e-9);
  }
  OnEngines({.mesh = {1, 2, 1}}, [&](Engine& engine) {
    engine.LimitCache(1000);
    const absl::Status refused = engine.Generate(request, {}).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(refused.message().find("keys and values"), absl::string_view::npos) << refused;
    engine.LimitCache(int64_t{1} << 40);
    EXPECT_TRUE(engine.Generate(request, {}).ok());
  });
}

TEST(BatchTest, EventsAreOfEachAnswerAndTellItsLast) {
  OnEngines({.mesh = {1, 2, 1}}, [&](Engine& engine) {
    std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>> ids;
    std::set<std::pair<int64_t, int64_t>> ended;
    std::vector<std::pair<int64_t, int64_t>> order;
    EngineEvents events;
    events.on_token = [&](const TokenEvent& token) {
      const std::pair answer(token.prompt_index, token.index);
      EXPECT_FALSE(ended.contains(answer));
      ids[answer].push_back(token.id);
      order.push_back(answer);
      if (token.last) ended.insert(answer);
    };
    const auto made = engine.Generate(Ending(Several(3, 3, 4)), events);
    ASSERT_TRUE(made.ok());
    if (engine.mesh().rank() != 0) {
      EXPECT_TRUE(ids.empty());
      return;
    }
    for (const GenerateResult& answer : Flat(*made)) {
      const std::pair which(answer.prompt_index, answer.index);
      EXPECT_EQ(ids[which], answer.ids);
      EXPECT_TRUE(ended.contains(which));
    }
    // Together, not one after the other.
    EXPECT_EQ((std::set(order.begin(), order.begin() + 4).size()), 4u);
  });
}

TEST(BatchTest, CancelEndsAllThatHadBegun) {
  OnEngines({.mesh = {1, 2, 1}}, [&](Engine& engine) {
    GenerateRequest request = Several(4, 2, 3);
    int tokens = 0;
    EngineEvents events;
    events.on_token = [&](const TokenEvent&) { ++tokens; };
    events.cancelled = [&] { return tokens >= 30; };
    const auto cancelled = engine.Generate(request, events);
    ASSERT_TRUE(cancelled.ok());
    const std::vector<GenerateResult> answers = Flat(*cancelled);
    ASSERT_EQ(answers.size(), 3u);  // the others had not begun
    for (const GenerateResult& answer : answers) {
      EXPECT_EQ(answer.finish, FinishReason::kCancelled);
      if (engine.mesh().rank() == 0) {
        EXPECT_GE(answer.ids.size(), 10u);
      }
      EXPECT_EQ(answer.report.memory.peak.size(), 2u);
    }
    EXPECT_EQ(engine.Generate(request, {})->more.size(), 7u);
  });
}

}  // namespace
}  // namespace toroid
