// REF64 equals transformers in float64: every family, every RoPE scaling, windows, GGUF types.
#include "tests/support/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/model/params.h"
#include "core/model/rope.h"
#include "core/random.h"
#include "tests/reference/open_reference.h"
#include "tests/support/all_close.h"

namespace toroid {
namespace {

double Largest(const std::vector<double>& a) { return Distance(a, std::vector<double>(a.size())); }

std::vector<double> LastRow(const std::vector<double>& x, int64_t cols) {
  return std::vector<double>(x.end() - cols, x.end());
}

// Stored logits are rounded to float32, the last row is not. rope_freqs.weight of a GGUF file is
// float32, and transformers did not see its rounding.
double Tolerance(const GoldenModel& c) {
  return c.model == "gguf/llama_llama3.gguf" ? 1e-5 : 1e-11;
}
constexpr double kFloatRounding = 1e-7;

class ReferenceGolden : public ::testing::TestWithParam<GoldenModel> {
 protected:
  const Golden golden_ = Golden::Load(GetParam().golden);
  ReferenceModel model_ = OpenReference(GoldenModelPath(GetParam().model));

  std::vector<double> Logits(std::vector<int32_t> ids, int64_t length_bound = 0) const {
    return ReferenceForward(model_.config, model_.params,
                            ReferenceInputOf(model_.config, std::move(ids), length_bound))
        .logits;
  }
};

TEST_P(ReferenceGolden, LogitsEqual) {
  const std::vector<double> expected = golden_.Array("logits");
  const std::vector<double> logits = Logits(golden_.Ids("ids"));
  const double tolerance = Tolerance(GetParam());
  EXPECT_LE(Distance(logits, expected), (tolerance + kFloatRounding) * Largest(expected));
  const std::vector<double> last = golden_.Array("last_logits_f64");
  EXPECT_LE(Distance(LastRow(logits, model_.config.vocab), last), tolerance * Largest(last));
}

// The comparison would see any parameter that was dropped, misread or exchanged.
TEST_P(ReferenceGolden, EveryParameterCounts) {
  const std::vector<int32_t> ids = golden_.Ids("ids");
  const std::vector<double> last = golden_.Array("last_logits_f64");
  for (const ParamSpec& spec : ParamTable(model_.config)) {
    if (!spec.alias.empty()) continue;
    std::vector<double>& values = model_.params.at(spec.name);
    // An embedding row that is used; else any element.
    const int64_t i = spec.group == "embedding" ? ids.back() * spec.cols
                                                : Philox(1, values.size(), 0)[0] % values.size();
    const double before = values[i];
    values[i] += 0.01;
    EXPECT_GT(Distance(LastRow(Logits(ids), model_.config.vocab), last),
              3 * Tolerance(GetParam()) * Largest(last))
        << spec.name;
    values[i] = before;
  }
}

// Without the variant the same weights differ by as much as transformers said.
using ReferenceGoldenVariant = ReferenceGolden;

TEST_P(ReferenceGoldenVariant, Counts) {
  ModelConfig plain = model_.config;
  double distance = 0;
  if (GetParam().gguf()) {
    plain.rope = {};
    distance = golden_["distance_from_plain"].get<double>();
  } else {
    const auto from = golden_["distance_from"].get<std::map<std::string, double>>();
    ASSERT_EQ(from.size(), 1u);
    plain = OpenReference(GoldenModelPath(from.begin()->first)).config;
    distance = from.begin()->second;
  }
  EXPECT_GT(distance, 0.01);
  const auto input = ReferenceInputOf(plain, golden_.Ids("ids"));
  const auto logits = ReferenceForward(plain, model_.params, input).logits;
  EXPECT_NEAR(Distance(logits, golden_.Array("logits")), distance, 1e-5 * distance);
}

// Greedy tokens, RoPE fixed for the final length (dynamic's base depends on it).
using ReferenceGoldenGreedy = ReferenceGolden;

TEST_P(ReferenceGoldenGreedy, TokensEqual) {
  const nlohmann::json& greedy = golden_["greedy"];
  const auto expected = greedy["ids"].get<std::vector<int32_t>>();
  std::vector<int32_t> ids = golden_.Ids("ids");
  ids.resize(greedy["prompt_tokens"].get<int64_t>());
  const int64_t bound = ids.size() + expected.size();
  double least = INFINITY;
  std::vector<int32_t> made;
  for (size_t i = 0; i < expected.size(); ++i) {
    std::vector<double> row = LastRow(Logits(ids, bound), model_.config.vocab);
    const auto best = std::max_element(row.begin(), row.end());
    made.push_back(int32_t(best - row.begin()));
    ids.push_back(made.back());
    std::nth_element(row.begin(), row.begin() + 1, row.end(), std::greater<double>());
    least = std::min(least, row[0] - row[1]);
  }
  EXPECT_EQ(made, expected);
  EXPECT_NEAR(least, greedy["min_margin"].get<double>(), 1e-9);
}

std::string TestName(const ::testing::TestParamInfo<GoldenModel>& info) {
  return info.param.TestName();
}

INSTANTIATE_TEST_SUITE_P(Models, ReferenceGolden, ::testing::ValuesIn(GoldenModels()), TestName);
INSTANTIATE_TEST_SUITE_P(
    Models, ReferenceGoldenVariant,
    ::testing::ValuesIn(GoldenModels([](const GoldenModel& m) { return m.variant(); })), TestName);
INSTANTIATE_TEST_SUITE_P(
    Models, ReferenceGoldenGreedy,
    ::testing::ValuesIn(GoldenModels([](const GoldenModel& m) { return !m.gguf(); })), TestName);

// Inside the context the base is the plain one, beyond it follows the length.
TEST(ReferenceGoldenDynamic, TheBaseFollowsTheLength) {
  const Golden golden = Golden::Load("llama_dynamic/expected");
  const ReferenceModel model = OpenReference(GoldenModelPath("llama_dynamic"));
  std::vector<int32_t> ids = golden.Ids("ids");
  ids.resize(golden["short_tokens"].get<int64_t>());
  const std::vector<double> expected = golden.Array("short_logits");
  const auto distance = [&](int64_t bound) {
    const auto input = ReferenceInputOf(model.config, ids, bound);
    return Distance(ReferenceForward(model.config, model.params, input).logits, expected);
  };
  EXPECT_LE(distance(40), 2e-7 * Largest(expected));
  EXPECT_LE(distance(48), 2e-7 * Largest(expected));
  EXPECT_GT(distance(49), 1e-4);
}

// Real weights, Q4_1 with permuted Q and K rows.
TEST(ReferenceGoldenSmolLm2, FirstLayers) {
  if (SmolLm2Path().empty()) GTEST_SKIP() << "SmolLM2 is not here: deploy/quickstart.sh gets it";
  const Golden golden = Golden::Load("smollm2/layers");
  const int64_t layers = golden["layers"].get<int64_t>();
  const ReferenceModel model = OpenReference(SmolLm2Path(), layers);
  ReferenceInput input = ReferenceInputOf(model.config, golden.Ids("ids"));
  input.layers = layers;
  input.logits = false;
  const std::vector<double> x = ReferenceForward(model.config, model.params, input).residual;
  const auto embedding = golden.Array("embedding"), hidden = golden.Array("hidden");
  const auto norms = golden.Array("norms");
  const auto rows = golden["rows"].get<std::vector<int64_t>>();
  const int64_t D = model.config.dim;
  const auto& table = model.params.at("model.embed_tokens.weight");
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = [D](const std::vector<double>& values, int64_t index) {
      return std::vector<double>(values.begin() + index * D, values.begin() + (index + 1) * D);
    };
    EXPECT_EQ(row(table, input.ids[rows[i]]), row(embedding, i));
    const auto expected = row(hidden, i);
    EXPECT_LE(Distance(row(x, rows[i]), expected), 1e-10 * Largest(expected)) << rows[i];
  }
  for (size_t t = 0; t < norms.size(); ++t) {
    double squares = 0;
    for (int64_t i = 0; i < D; ++i) squares += x[t * D + i] * x[t * D + i];
    EXPECT_NEAR(std::sqrt(squares), norms[t], 1e-10 * norms[t]) << t;
  }
}

TEST(ReferenceGoldenSmolLm2Slow, LogProbabilities) {
  if (SmolLm2Path().empty()) GTEST_SKIP() << "SmolLM2 is not here: deploy/quickstart.sh gets it";
  const Golden golden = Golden::Load("smollm2/score");
  const ReferenceModel model = OpenReference(SmolLm2Path());
  std::vector<int32_t> ids = golden.Ids("ids");
  ids.resize(129);
  const auto expected = golden.Array("logprobs_f64");
  const auto logits =
      ReferenceForward(model.config, model.params, ReferenceInputOf(model.config, ids)).logits;
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    EXPECT_NEAR(ReferenceLogP(&logits[t * model.config.vocab], model.config.vocab, ids[t + 1]),
                expected[t], 1e-9)
        << t;
  }
}

}  // namespace
}  // namespace toroid
