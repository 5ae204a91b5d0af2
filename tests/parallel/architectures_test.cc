// PaLM and GPT models through the engine: against REF64, the same on every mesh, cached as
// uncached, with one gather and one sum to a parallel layer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/reference/open_reference.h"
#include "tests/support/all_close.h"
#include "tests/support/engine_on_mesh.h"

namespace toroid {
namespace {

const char* const kModels[] = {"random:palm-tiny", "random:gpt3-tiny"};

const ReferenceModel& ReferenceOf(const std::string& model) {
  static std::map<std::string, ReferenceModel> models;
  if (!models.contains(model)) models[model] = OpenReference(model, -1, 7);
  return models[model];
}

// Logits of every position by REF64; `change` spoils the configuration (negative controls).
std::vector<double> ReferenceLogitsOf(
    const std::string& model, const std::vector<int32_t>& ids,
    const std::function<void(ModelConfig&)>& change = [](ModelConfig&) {}) {
  ReferenceModel reference = ReferenceOf(model);
  change(reference.config);
  return ReferenceForward(reference.config, reference.params,
                          ReferenceInputOf(reference.config, ids))
      .logits;
}

TEST(ArchitecturesTest, LogitsAreTheReferencesOnEveryMesh) {
  for (const std::string model : kModels) {
    const std::vector<int32_t> ids = MixedIds(53, 320);
    const std::vector<double> expected = ReferenceLogitsOf(model, ids);
    for (int64_t ring = 1; ring <= 3; ++ring) {
      for (int64_t tensor = 1; tensor <= 3; ++tensor) {
        for (const LayoutRule& layout : {kZigzag, kPages}) {
          const EngineCase c{.model = model, .mesh = {1, ring, tensor}, .layout = layout};
          EXPECT_TRUE(AllClose(LogitsOn(c, ids), expected)) << model << " " << ToString(c);
        }
      }
    }
    const EngineCase two{.model = model, .mesh = {2, 2, 2}, .layout = kContiguous};
    EXPECT_TRUE(AllClose(LogitsOn(two, ids), expected)) << model;
  }
}

TEST(ArchitecturesTest, AnyLengthShorterThanTheMeshToo) {
  for (const std::string model : kModels) {
    for (const int64_t length : {1, 2, 5, 26}) {
      const std::vector<int32_t> ids = MixedIds(length, 320);
      const EngineCase c{.model = model, .mesh = {1, 2, 3}, .layout = kZigzag};
      EXPECT_TRUE(AllClose(LogitsOn(c, ids), ReferenceLogitsOf(model, ids)))
          << model << " " << length;
    }
  }
}

// Negative controls: a reference that computes another block is far away.
TEST(ArchitecturesTest, EachChoiceShows) {
  const std::vector<int32_t> ids = MixedIds(53, 320);
  const auto far = [&](const std::string& model, const std::function<void(ModelConfig&)>& change) {
    return Distance(LogitsOn({.model = model}, ids), ReferenceLogitsOf(model, ids, change)) > 1e-3;
  };
  const std::string palm = kModels[0], gpt = kModels[1];
  EXPECT_TRUE(far(palm, [](ModelConfig& c) { c.logit_scale = 1; }));
  EXPECT_TRUE(far(palm, [](ModelConfig& c) { c.rope_base = 1000; }));
  EXPECT_TRUE(far(gpt, [](ModelConfig& c) { c.norm = NormKind::kRms; }));
  EXPECT_TRUE(far(gpt, [](ModelConfig& c) { c.positions = PositionKind::kRope; }));
  EXPECT_TRUE(far(gpt, [](ModelConfig& c) { c.windows = {}; }));
  EXPECT_TRUE(far(gpt, [](ModelConfig& c) { std::swap(c.windows[0], c.windows[1]); }));
}

TEST(ArchitecturesTest, TapsAreTheReferences) {
  for (const std::string model : kModels) {
    const std::vector<int32_t> ids = MixedIds(31, 320);
    const ReferenceModel& reference = ReferenceOf(model);
    ReferenceInput input = ReferenceInputOf(reference.config, ids);
    input.taps = true;
    const auto expected = ReferenceForward(reference.config, reference.params, input).taps;
    int seen = 0;
    OnEngines({.model = model}, [&](Engine& engine) {
      const Observer observer = [&](int64_t layer, Tap tap, Tensor x) {
        const ReferenceTaps& taps = expected[layer];
        const std::vector<double>& truth = tap == Tap::kAttentionIn    ? taps.attention_in
                                           : tap == Tap::kQuery        ? taps.query
                                           : tap == Tap::kKey          ? taps.key
                                           : tap == Tap::kValue        ? taps.value
                                           : tap == Tap::kAttentionOut ? taps.attention_out
                                           : tap == Tap::kMlpIn        ? taps.mlp_in
                                           : tap == Tap::kMlpOut       ? taps.mlp_out
                                                                       : taps.residual;
        std::vector<double> values(x.size());
        engine.backend().Download(engine.stream(), x, values.data());
        EXPECT_TRUE(AllClose(values, truth)) << model << " " << layer << " " << TapName(tap);
        ++seen;
      };
      ASSERT_TRUE(engine.Observe(ids, observer, nullptr).ok());
    });
    EXPECT_EQ(seen, 8 * reference.config.layers);
  }
}

GenerateResult Made(const EngineCase& c, int64_t prompt, int64_t most) {
  GenerateRequest request;
  request.prompt_ids = MixedIds(prompt, 320);
  request.max_tokens = most;
  request.logprobs = true;
  return GenerateOn(c, request);
}

// The log p of each token made, from the cache, equals its log p when the whole text is scored. The
// text grows past the bands of gpt3-tiny.
TEST(ArchitecturesTest, CachedIsUncached) {
  for (const std::string model : kModels) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 3, 1}, MeshShape{1, 2, 3}}) {
      const GenerateResult made = Made({.model = model, .mesh = mesh}, 21, 30);
      ASSERT_EQ(made.ids.size(), 30u);
      std::vector<int32_t> ids = MixedIds(21, 320);
      ids.insert(ids.end(), made.ids.begin(), made.ids.end());
      const ScoreResult scored = ScoreOn({.model = model}, {ids, 0, true});
      for (int i = 0; i < 30; ++i) EXPECT_NEAR(scored.logprobs[20 + i], made.logprobs[i], 1e-9);
    }
  }
}

TEST(ArchitecturesTest, TokensAreEqualOnEveryMeshInFloat32) {
  for (const std::string model : kModels) {
    const GenerateResult one = Made({.model = model, .compute = Compute::kF32}, 37, 16);
    EXPECT_GT(one.min_margin, 1e-4);
    for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{1, 1, 3}, MeshShape{2, 2, 2}}) {
      EXPECT_EQ(Made({.model = model, .mesh = mesh, .compute = Compute::kF32}, 37, 16).ids, one.ids)
          << model << " " << ToString(mesh);
    }
  }
}

// Calls and bytes over `tensor` of a pass through `layers` layers, rank 0.
CommCounters TensorTraffic(const EngineCase& c, int64_t tokens) {
  CommCounters traffic;
  OnEngines(c, [&](Engine& engine) {
    const CommCounters before = engine.mesh().tensor().counters();
    ASSERT_TRUE(engine
                    .Observe(
                        MixedIds(tokens, 320), [](int64_t, Tap, Tensor) {}, nullptr)
                    .ok());
    const CommCounters after = engine.mesh().tensor().counters();
    if (engine.mesh().rank() == 0) {
      traffic = {after.bytes_sent - before.bytes_sent, after.calls - before.calls};
    }
  });
  return traffic;
}

// One AllGather and one ReduceScatter of the residual to a parallel layer, two of each to a serial
// one; of one block of tokens (512) or several.
TEST(ArchitecturesTest, CollectivesOfALayer) {
  for (const std::string model : {"random:palm-tiny", "random:gpt3-tiny", "random:tiny-mqa"}) {
    for (const int64_t tensor : {2, 3}) {
      for (const int64_t tokens : {53, 1100}) {
        EngineCase c{.model = model, .mesh = {1, 1, tensor}, .compute = Compute::kF32};
        c.layers = 1;
        const CommCounters one = TensorTraffic(c, tokens);
        c.layers = 2;
        const CommCounters two = TensorTraffic(c, tokens);
        const int64_t pairs = model == "random:palm-tiny" ? 1 : 2;
        const int64_t share = (tokens + tensor - 1) / tensor * 64 * 4;  // u D
        EXPECT_EQ(two.calls - one.calls, 2 * pairs) << model;
        EXPECT_EQ(two.bytes_sent - one.bytes_sent, 2 * pairs * (tensor - 1) * share) << model;
      }
    }
  }
}

TEST(ArchitecturesTest, LearnedPositionsEndWithTheirTable) {
  LoadRequest load;
  load.model = "random:gpt3-tiny";
  load.threads = 1;
  load.context = 2049;
  const auto engine = [&] {
    return Engine::Create(std::make_unique<SelfCommunicator>(), TestSource(load.model), load,
                          nullptr);
  };
  const absl::Status status = engine().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.ToString().find("learned positions for 2048 tokens"), std::string::npos);
  load.context = 2048;
  EXPECT_TRUE(engine().ok());
}

}  // namespace
}  // namespace toroid
