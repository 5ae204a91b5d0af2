// The engine on meshes of threads against transformers: every family, RoPE scaling, window and GGUF
// type, all logits and greedy tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "tests/support/all_close.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/golden.h"

namespace toroid {
namespace {

class GoldenEngineTest : public ::testing::TestWithParam<GoldenModel> {
 protected:
  const Golden golden_ = Golden::Load(GetParam().golden);

  EngineCase On(EngineCase c, Compute compute) const {
    c.model = GoldenModelPath(GetParam().model);
    c.compute = compute;
    c.context = 128;  // dynamic RoPE: beyond the 48 of its config.json
    return c;
  }

  void ExpectLogits(const EngineCase& c) const {
    SCOPED_TRACE(ToString(c));
    const std::vector<double> logits = LogitsOn(c, golden_.Ids("ids"));
    const std::vector<double> last = golden_.Array("last_logits_f64");
    EXPECT_LE(Distance(logits, golden_.Array("logits")), 1e-4);
    if (c.compute != Compute::kF64 || logits.size() < last.size()) return;
    // All but the last row are stored rounded to float32, and so are the divisors in this file.
    const double tolerance = GetParam().model == "gguf/llama_llama3.gguf" ? 1e-4 : 1e-9;
    EXPECT_LE(Distance({logits.end() - last.size(), logits.end()}, last), tolerance);
  }
};

TEST_P(GoldenEngineTest, LogitsEqualOnEveryMeshAndLayout) {
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 3, 1},
                               MeshShape{1, 1, 2}, MeshShape{1, 2, 2}}) {
    for (const LayoutRule& layout : {kContiguous, kZigzag, kStriped1, kPages}) {
      if (mesh.ring == 1 && layout != kZigzag) continue;  // all the same
      ExpectLogits(On({.mesh = mesh, .layout = layout}, Compute::kF32));
      if (layout == kZigzag) ExpectLogits(On({.mesh = mesh, .layout = layout}, Compute::kF64));
    }
  }
}

// Every mesh, every layout at least twice.
const EngineCase kMeshes[] = {
    {.mesh = {1, 1, 1}},
    {.mesh = {1, 2, 1}, .layout = kContiguous},
    {.mesh = {1, 2, 1}, .layout = kStriped1},
    {.mesh = {1, 3, 1}, .layout = kZigzag},
    {.mesh = {1, 3, 1}, .layout = kPages},
    {.mesh = {1, 1, 2}},
    {.mesh = {1, 2, 2}, .layout = kZigzag},
    {.mesh = {1, 2, 2}, .layout = kContiguous},
};

// Decode over the sharded cache, with windows; dynamic RoPE keeps the base of prompt + made tokens.
using GoldenEngineGreedyTest = GoldenEngineTest;

TEST_P(GoldenEngineGreedyTest, TokensEqualOnEveryMesh) {
  const nlohmann::json& greedy = golden_["greedy"];
  const auto expected = greedy["ids"].get<std::vector<int32_t>>();
  const double margin = greedy["min_margin"].get<double>();
  ASSERT_EQ(expected.size(), 24u);
  ASSERT_GT(margin, 1e-3);
  GenerateRequest request;
  request.prompt_ids = golden_.Ids("ids");
  request.prompt_ids.resize(greedy["prompt_tokens"].get<int64_t>());
  request.max_tokens = int64_t(expected.size());
  for (EngineCase c : kMeshes) {
    c.page_tokens = 4;  // pages of many ranks in so short a text
    if (c.layout == kPages) c.layout.stripe = 4;
    SCOPED_TRACE(ToString(c));
    const GenerateResult made = GenerateOn(On(c, Compute::kF32), request);
    EXPECT_EQ(made.ids, expected);
    EXPECT_NEAR(made.min_margin, margin, 2e-4);
  }
}

// Negative control: the same weights without the variant are as far away as transformers said, on
// a mesh too.
using GoldenEngineVariantTest = GoldenEngineTest;

TEST_P(GoldenEngineVariantTest, ThePlainModelFails) {
  const bool gguf = GetParam().gguf();
  const auto from = gguf ? std::map<std::string, double>{{"gguf/llama_mixed.gguf", 0}}
                         : golden_["distance_from"].get<std::map<std::string, double>>();
  EngineCase c = On(kMeshes[6], Compute::kF32);
  c.model = GoldenModelPath(from.begin()->first);
  const double distance = Distance(LogitsOn(c, golden_.Ids("ids")), golden_.Array("logits"));
  EXPECT_GT(distance, 0.01);
  if (!gguf) {  // the GGUF files are not of one stored type
    EXPECT_NEAR(distance, from.begin()->second, 1e-3);
  }
}

TEST(GoldenEngineDynamicTest, TheBaseIsFixedByPromptAndMaxTokens) {
  const Golden golden = Golden::Load("llama_dynamic/expected");
  const nlohmann::json& greedy = golden["greedy"];
  GenerateRequest request;
  request.prompt_ids = golden.Ids("ids");
  request.prompt_ids.resize(greedy["prompt_tokens"].get<int64_t>());
  request.logprobs = true;
  const auto made = [&](int64_t most) {
    request.max_tokens = most;
    return GenerateOn(
        {.model = GoldenModelPath("llama_dynamic"), .mesh = {1, 2, 1}, .context = 128}, request);
  };
  // 32 + 1 tokens lie inside the context of 48, 32 + 24 and 32 + 40 have bases of their own.
  const double inside = made(1).logprobs[0];
  EXPECT_EQ(made(16).logprobs[0], inside);
  EXPECT_GT(std::abs(made(24).logprobs[0] - inside), 1e-4);
  EXPECT_GT(std::abs(made(40).logprobs[0] - made(24).logprobs[0]), 1e-4);

  // The first 40 ids in one forward inside the context.
  std::vector<int32_t> ids = golden.Ids("ids");
  ids.resize(golden["short_tokens"].get<int64_t>());
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 2}}) {
    const EngineCase c{.model = GoldenModelPath("llama_dynamic"), .mesh = mesh, .context = 128};
    EXPECT_LE(Distance(LogitsOn(c, ids), golden.Array("short_logits")), 1e-5);
  }
}

std::string TestName(const ::testing::TestParamInfo<GoldenModel>& info) {
  return info.param.TestName();
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenEngineTest, ::testing::ValuesIn(GoldenModels()), TestName);
INSTANTIATE_TEST_SUITE_P(
    Models, GoldenEngineGreedyTest,
    ::testing::ValuesIn(GoldenModels([](const GoldenModel& m) { return !m.gguf(); })), TestName);
INSTANTIATE_TEST_SUITE_P(
    Models, GoldenEngineVariantTest,
    ::testing::ValuesIn(GoldenModels([](const GoldenModel& m) { return m.variant(); })), TestName);

}  // namespace
}  // namespace toroid
