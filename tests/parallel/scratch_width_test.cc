// What is declared as long as a rank's tokens is a short list (core/arena.h) on which nothing as
// wide as F, V or S may stand: bytes of scratch per token are those of the list, and the same
// whatever F and V are and however long the text is. On the counting backend.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/counting_communicator.h"
#include "parallel/engine.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/gradients_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

// Scratch at so many tokens a rank.
using ScratchAt = std::function<int64_t(int64_t tokens)>;

// Bytes that a token adds at `tokens` of a rank, from there to twice as many.
double BytesPerToken(const ScratchAt& scratch, int64_t tokens) {
  return double(scratch(2 * tokens) - scratch(tokens)) / double(tokens);
}

// All that may be as long as the tokens, at once, in float32. x, dx, x2, dy, da, a and its like of
// the other half: D each; Q, O, dQ, dO: h K; K and V, as they are stored, travel and arrive, and
// their gradients: 2 g K; LSE and delta: h; ids, labels, positions, a block's positions: i32;
// slots, weights, log p, log Z: 64 bits.
double TokenBytes(const ModelConfig& config, int64_t tensor_rank, int64_t tensor) {
  const HeadLayout heads(config.query_heads, config.kv_heads, tensor_rank, tensor);
  const int64_t h = heads.query_count(), g = heads.kv_count(), K = config.head_dim;
  return double(4 * (7 * config.dim + 4 * h * K + 6 * 2 * g * K + 2 * h) + 4 * 4 + 4 * 8);
}

// F and V ten times as large.
ModelConfig Widened(ModelConfig config) {
  config.ffn *= 10, config.vocab *= 10;
  return config;
}

std::vector<ModelConfig> Architectures() {
  ModelConfig gpt = TinyGpt();
  gpt.context = 1 << 20;
  return {TinyConfig(), TinyPalm(), gpt};
}

// --- training

ScratchAt TrainingScratch(GradientCase c) {
  return [c = std::move(c)](int64_t tokens) mutable {
    c.packs = {{tokens * c.mesh.ring}};
    const auto ops = NewCountingBackend(c.type);
    Mesh mesh(NewCountingWorld(int(c.mesh.size()) - 1, int(c.mesh.size())), c.mesh);
    GradientRank rank(c, nullptr, *ops, mesh);
    rank.Run();
    return rank.scratch().peak();
  };
}

constexpr int64_t kTokens = 6 * 1024;  // many blocks, a multiple of every tensor axis below

TEST(ScratchWidthTest, TrainingHoldsNothingAsWideAsFOrVOrS) {
  for (const ModelConfig& config : Architectures()) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 2, 3}}) {
      for (const Remat remat : {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock}) {
        GradientCase c{.config = config,
                       .mesh = mesh,
                       .remat = remat,
                       .type = DType::kF32,
                       .kv_dtype = DType::kBF16,
                       .token_block = 64};
        SCOPED_TRACE(config.architecture + " " + ToString(c));
        const double bytes = BytesPerToken(TrainingScratch(c), kTokens);
        EXPECT_LE(bytes, TokenBytes(config, mesh.tensor - 1, mesh.tensor));
        EXPECT_EQ(BytesPerToken(TrainingScratch(c), 2 * kTokens), bytes);
        c.config = Widened(config);
        EXPECT_EQ(BytesPerToken(TrainingScratch(c), kTokens), bytes);
      }
    }
  }
}

// Negative controls: as long as the text and as wide as F; and as S.
TEST(ScratchWidthTest, WhatIsWideShows) {
  const auto with = [](const ModelConfig& config, const std::function<int64_t(Pass&)>& width) {
    GradientCase c{.config = config, .type = DType::kF32, .token_block = 64};
    c.break_pass = [width](Pass& pass) {
      pass.attend = [&pass, width](auto...) {
        pass.Long("wide", DType::kF32, {pass.residual.tokens(), width(pass)});
      };
    };
    return TrainingScratch(c);
  };
  for (const ModelConfig& config : Architectures()) {
    const auto f = [](const ModelConfig& of) { return [f = of.ffn](Pass&) { return f; }; };
    const ModelConfig wide = Widened(config);
    EXPECT_GT(BytesPerToken(with(wide, f(wide)), kTokens),
              BytesPerToken(with(config, f(config)), kTokens));
    const auto s = [](Pass& pass) { return pass.residual.tokens(); };
    EXPECT_GT(BytesPerToken(with(config, s), 2 * kTokens), BytesPerToken(with(config, s), kTokens));
  }
}

// --- prompts and scores

// Scratch of a prompt of so many tokens a rank, and of scoring it.
void ExpectNarrow(const std::string& model, MeshShape mesh) {
  SCOPED_TRACE(model + " " + ToString(mesh));
  const auto scratch = [&](bool widened, bool scored) -> ScratchAt {
    return [=](int64_t tokens) {
      auto opened = OpenModel(model, 7);
      TOROID_CHECK_MSG(opened.ok(), opened.status().ToString());
      if (widened) opened->config = Widened(opened->config);
      const auto source = std::make_shared<const ModelSource>(*std::move(opened));
      LoadRequest load;
      load.mesh = mesh, load.compute = Compute::kF32, load.context = 1 << 20, load.threads = 1;
      int64_t bytes = 0;
      RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
        auto engine = Engine::Create(std::move(world), source, load, nullptr);
        ASSERT_TRUE(engine.ok()) << engine.status();
        const std::vector<int32_t> ids(size_t(tokens * mesh.ring), 1);
        GenerateRequest request;
        request.prompt_ids = ids, request.max_tokens = 1;
        const auto use =
            scored ? (*engine)->ForeseeScore({ids, 0, false}) : (*engine)->ForeseeGenerate(request);
        ASSERT_TRUE(use.ok()) << use.status();
        if ((*engine)->mesh().rank() == 0) bytes = use->scratch;
      });
      return bytes;
    };
  };
  for (const bool scored : {false, true}) {
    const double bytes = BytesPerToken(scratch(false, scored), 32768);
    EXPECT_LE(bytes, TokenBytes(TestSource(model)->config, 0, mesh.tensor));
    EXPECT_EQ(BytesPerToken(scratch(true, scored), 32768), bytes);
    EXPECT_EQ(BytesPerToken(scratch(false, scored), 2 * 32768), bytes);
  }
}

TEST(ScratchWidthTest, PromptsHoldNothingAsWideAsFOrVOrS) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny"}) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}}) ExpectNarrow(model, mesh);
  }
}

}  // namespace
}  // namespace toroid
