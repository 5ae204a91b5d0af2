#include "core/model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/random.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

Sampler Make(const SamplingParams& params, int64_t vocab, std::vector<int32_t> prompt = {},
             uint64_t sequence = 0) {
  auto sampler = Sampler::Create(params, vocab, sequence, prompt);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  return *std::move(sampler);
}

template <typename T>
Sampled Sample(Sampler& sampler, const std::vector<T>& logits, int64_t position = 0) {
  const auto sampled = sampler.Sample(std::span<const T>(logits), position);
  EXPECT_TRUE(sampled.ok()) << sampled.status();
  return *sampled;
}

std::vector<double> RandomLogits(int64_t vocab, uint64_t seed, double deviation = 2) {
  std::vector<double> logits(vocab);
  for (int64_t i = 0; i < vocab; ++i) logits[i] = deviation * NormalAt(seed, 7, i);
  return logits;
}

TEST(SamplingParams, RefusesByName) {
  EXPECT_TRUE(SamplingParams{}.Validate().ok());
  const SamplingParams usual{
      .temperature = 0.7, .top_p = 0.9, .top_k = 40, .min_p = 0.05, .repetition_penalty = 1.1};
  EXPECT_TRUE(usual.Validate().ok());
  const auto expect_refused = [](const SamplingParams& params, const std::string& field,
                                 const std::string& range) {
    const absl::Status status = params.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(Message(status), HasSubstr(field + " is "));
    EXPECT_THAT(Message(status), HasSubstr(range));
    EXPECT_FALSE(Sampler::Create(params, 8, 0, {}).ok());
  };
  for (double bad : {-0.5, kNan, kInfinity}) {
    expect_refused({.temperature = bad}, "temperature", ">= 0");
    expect_refused({.top_p = bad}, "top_p", "> 0 and <= 1");
    expect_refused({.min_p = bad}, "min_p", ">= 0 and <= 1");
    expect_refused({.repetition_penalty = bad}, "repetition_penalty", "from 0.01 to 100");
  }
  for (double bad : {-2.5, 2.5, kNan}) {
    expect_refused({.presence_penalty = bad}, "presence_penalty", "from -2 to 2");
    expect_refused({.frequency_penalty = bad}, "frequency_penalty", "from -2 to 2");
  }
  expect_refused({.top_p = 0}, "top_p", "> 0 and <= 1");
  expect_refused({.top_p = 1.01}, "top_p", "> 0 and <= 1");
  expect_refused({.top_k = -1}, "top_k", ">= 0");
  expect_refused({.repetition_penalty = 0}, "repetition_penalty", "from 0.01 to 100");
}

TEST(Sampler, RefusesPromptIdsOutsideTheVocabulary) {
  for (int32_t bad : {-1, 8}) {
    const std::vector<int32_t> prompt = {3, bad};
    const auto sampler = Sampler::Create({}, 8, 0, prompt);
    ASSERT_FALSE(sampler.ok());
    EXPECT_THAT(Message(sampler.status()), HasSubstr("prompt id " + std::to_string(bad)));
    EXPECT_THAT(Message(sampler.status()), HasSubstr("position 1"));
  }
}

TEST(Sampler, RefusesLogitsThatAreNotFinite) {
  for (double temperature : {0.0, 1.0}) {
    for (float bad : {float(kNan), float(kInfinity), -float(kInfinity)}) {
      Sampler sampler = Make({.temperature = temperature}, 4);
      const std::vector<float> logits = {0, 1, bad, 2};
      const auto sampled = sampler.Sample(std::span<const float>(logits), 17);
      ASSERT_FALSE(sampled.ok());
      EXPECT_EQ(sampled.status().code(), absl::StatusCode::kInternal);
      EXPECT_THAT(Message(sampled.status()), HasSubstr("logit of id 2 at position 17"));
    }
  }
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestOfEquals) {
  Sampler sampler = Make({}, 5);
  const Sampled clear = Sample<float>(sampler, {1, 4, -2, 3.5, 0});
  EXPECT_EQ(clear.id, 1);
  EXPECT_DOUBLE_EQ(clear.margin, 0.5);
  const double log_sum = std::log(std::exp(1) + std::exp(4) + std::exp(-2) + std::exp(3.5) + 1);
  EXPECT_NEAR(clear.log_p, 4 - log_sum, 1e-14);
  const Sampled tie = Sample<double>(sampler, {1, 4, -2, 4, 4});
  EXPECT_EQ(tie.id, 1);
  EXPECT_EQ(tie.margin, 0);
  const Sampled falling = Sample<double>(sampler, {9, 4, -2, 5, 4});
  EXPECT_EQ(falling.id, 0);
  EXPECT_EQ(falling.margin, 4);
  Sampler one = Make({}, 1);
  EXPECT_EQ(Sample<double>(one, {-3}).margin, kInfinity);
  EXPECT_EQ(Sample<double>(one, {-3}).log_p, 0);
}

TEST(Sampler, HugeLogitsAndTinyTemperaturesStayFinite) {
  Sampler sampler = Make({.temperature = 1e-308}, 3);
  const Sampled sampled = Sample<float>(sampler, {-3e38f, 3e38f, 2e38f});
  EXPECT_EQ(sampled.id, 1);
  EXPECT_EQ(sampled.log_p, 0);
}

// Penalties act on the choice, never on log_p.
TEST(Sampler, PenaltiesCountAsDefined) {
  const std::vector<double> logits = {2, -1, 1.75, 1.5};
  const auto greedy = [&](const SamplingParams& params, std::vector<int32_t> prompt,
                          std::vector<int32_t> output) {
    Sampler sampler = Make(params, 4, prompt);
    for (int32_t id : output) sampler.Append(id);
    return Sample(sampler, logits);
  };
  EXPECT_EQ(greedy({}, {0}, {0, 0}).id, 0);
  // Repetition: prompt and output, once however often seen. 2 / 1.25 = 1.6 < 1.75.
  EXPECT_EQ(greedy({.repetition_penalty = 1.25}, {0}, {}).id, 2);
  EXPECT_NEAR(greedy({.repetition_penalty = 1.25}, {0, 0}, {0}).margin, 1.75 - 1.6, 1e-14);
  EXPECT_NEAR(greedy({.repetition_penalty = 1.25}, {}, {0}).margin, 1.75 - 1.6, 1e-14);
  // Negative logits are multiplied: -1 * 0.5 = -0.5; 2 / 0.5 = 4.
  EXPECT_NEAR(greedy({.repetition_penalty = 0.5}, {0, 1}, {}).margin, 4 - 1.75, 1e-14);
  // Presence: output only, once.
  EXPECT_EQ(greedy({.presence_penalty = 0.5}, {0}, {}).id, 0);
  EXPECT_NEAR(greedy({.presence_penalty = 0.5}, {}, {0, 0}).margin, 1.75 - 1.5, 1e-14);
  // Frequency: output only, each time.
  EXPECT_EQ(greedy({.frequency_penalty = 0.125}, {0, 0, 0, 0}, {0}).id, 0);
  EXPECT_NEAR(greedy({.frequency_penalty = 0.25}, {}, {0, 0}).margin, 1.75 - 1.5, 1e-14);
  const SamplingParams all{
      .repetition_penalty = 1.25, .presence_penalty = 0.25, .frequency_penalty = 0.125};
  const Sampled both = greedy(all, {}, {0, 0, 2});  // 2: 1.1; 2: 1.4 - 0.25 - 0.125 = 1.025
  EXPECT_EQ(both.id, 3);
  EXPECT_NEAR(both.margin, 1.5 - 1.1, 1e-14);
  Sampler plain = Make({}, 4);
  EXPECT_EQ(greedy({.repetition_penalty = 1.25}, {2}, {}).log_p, Sample(plain, logits).log_p);
}

// Probabilities as transformers 4's logits processors give them (repetition, temperature, top_k,
// top_p, min_p in this order) for the prompt 3 1 3 6, against the frequencies of our draws.
TEST(Sampler, DrawsTheDistributionOfTransformers) {
  const std::vector<double> logits = {2.0, -1.0, 0.5, 3.0, 1.5, -0.25, 2.5, 0.0, 1.0, -3.0};
  struct Case {
    double repetition, temperature;
    int64_t top_k;
    double top_p, min_p;
    std::vector<double> probabilities;
  };
  const std::vector<Case> cases = {
      {1.3,
       1,
       0,
       1,
       0,
       {0.209725414699, 0.00773533757862, 0.0467960653689, 0.285285785438, 0.127204894136,
        0.0221048960801, 0.194197571213, 0.0283832484001, 0.0771536683587, 0.0014131187286}},
      {1,
       0.7,
       0,
       1,
       0,
       {0.122336972772, 0.0016838200028, 0.0143524716281, 0.510479631503, 0.059889044676,
        0.00491599214982, 0.249901045976, 0.00702613277957, 0.02931818232, 9.67061931361e-05}},
      {1,
       1,
       4,
       1,
       0,
       {0.167405097278, 0, 0, 0.455054233923, 0.101536324092, 0, 0.276004344707, 0, 0, 0}},
      {1,
       1,
       0,
       0.8,
       0,
       {0.167405097278, 0, 0, 0.455054233923, 0.101536324092, 0, 0.276004344707, 0, 0, 0}},
      {1,
       1,
       0,
       1,
       0.2,
       {0.167405097278, 0, 0, 0.455054233923, 0.101536324092, 0, 0.276004344707, 0, 0, 0}},
      {1.3,
       1.5,
       6,
       0.85,
       0.3,
       {0.226878702869, 0, 0, 0.278535001805, 0.162565694308, 0, 0.21553719102, 0, 0.116483409997,
        0}},
      {0.8, 0.5, 5, 0.95, 0.01, {0, 0, 0, 0.777299861175, 0, 0, 0.222700138825, 0, 0, 0}}};
  const int64_t draws = 20000;
  const auto worst_deviations = [&](const Case& c, double temperature) {
    Sampler sampler = Make({.temperature = temperature,
                            .top_p = c.top_p,
                            .top_k = c.top_k,
                            .min_p = c.min_p,
                            .repetition_penalty = c.repetition,
                            .seed = 5},
                           10, {3, 1, 3, 6});
    std::vector<int64_t> counts(10);
    for (int64_t i = 0; i < draws; ++i) ++counts[Sample(sampler, logits, i).id];
    double worst = 0;
    for (int i = 0; i < 10; ++i) {
      const double p = c.probabilities[i], expected = p * draws;
      if (p == 0) {
        worst = std::max(worst, counts[i] == 0 ? 0 : kInfinity);
      } else {
        worst = std::max(worst, std::abs(counts[i] - expected) / std::sqrt(expected * (1 - p)));
      }
    }
    return worst;
  };
  for (const Case& c : cases) {
    EXPECT_LT(worst_deviations(c, c.temperature), 4.5) << "top_k " << c.top_k;
    EXPECT_GT(worst_deviations(c, c.temperature * 1.2), 4.5) << "top_k " << c.top_k;
  }
}

// The same definition by sorting everything.
Sampled BySorting(const SamplingParams& params, const std::vector<double>& logits,
                  uint64_t sequence, int64_t position) {
  const int64_t vocab = logits.size();
  std::vector<double> z(vocab), weight(vocab);
  std::vector<int32_t> ids(vocab);
  std::iota(ids.begin(), ids.end(), 0);
  const double largest = *std::max_element(logits.begin(), logits.end());
  double all = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    z[i] = (logits[i] - largest) / params.temperature;
    weight[i] = std::exp(z[i]);
    all += std::exp(logits[i] - largest);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
  if (params.top_k > 0) ids.resize(std::min(params.top_k, vocab));
  const auto sum = [&] {
    double total = 0;
    for (int32_t id : ids) total += weight[id];
    return total;
  };
  if (params.top_p < 1) {
    const double total = sum();
    double before = 0;
    size_t kept = 0;
    while (kept < ids.size() && before / total < params.top_p) before += weight[ids[kept++]];
    ids.resize(kept);
  }
  while (weight[ids.back()] < params.min_p) ids.pop_back();
  std::sort(ids.begin(), ids.end());
  const double total = sum();
  const double u = UniformDouble(Philox(params.seed, position, sequence));
  double low = 0;
  for (int32_t id : ids) {
    const double high = low + weight[id] / total;
    if (u < high || id == ids.back()) {
      const double margin = std::min(id == ids.front() ? kInfinity : u - low,
                                     id == ids.back() ? kInfinity : high - u);
      return {id, logits[id] - largest - std::log(all), margin};
    }
    low = high;
  }
  return {};
}

TEST(Sampler, EqualsTheDefinitionBySorting) {
  int64_t different_under_another_sequence = 0;
  for (int64_t vocab : {1, 2, 7, 100, 1000}) {
    for (double temperature : {0.3, 1.0, 2.5}) {
      for (int64_t top_k : {0, 1, 5, 2000}) {
        for (double top_p : {0.05, 0.9, 1.0}) {
          for (double min_p : {0.0, 0.1, 1.0}) {
            const SamplingParams params{.temperature = temperature,
                                        .top_p = top_p,
                                        .top_k = top_k,
                                        .min_p = min_p,
                                        .seed = 11};
            Sampler sampler = Make(params, vocab, {}, 3);
            for (int64_t position = 0; position < 8; ++position) {
              const auto logits = RandomLogits(vocab, position);
              const Sampled got = Sample(sampler, logits, position);
              const Sampled expected = BySorting(params, logits, 3, position);
              ASSERT_EQ(got.id, expected.id);
              ASSERT_NEAR(got.log_p, expected.log_p, 1e-12);
              if (std::isinf(expected.margin)) {
                ASSERT_EQ(got.margin, expected.margin);
              } else {
                ASSERT_NEAR(got.margin, expected.margin, 1e-12);
              }
              different_under_another_sequence +=
                  BySorting(params, logits, 4, position).id != got.id;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(different_under_another_sequence, 100);
}

TEST(Sampler, TiesAtACutoffGoToTheLowestIds) {
  const std::vector<double> logits(6, 1.0);
  for (const SamplingParams& params : {SamplingParams{.temperature = 1, .top_k = 2},
                                       SamplingParams{.temperature = 1, .top_p = 0.3}}) {
    Sampler sampler = Make(params, 6);
    std::vector<int64_t> counts(6);
    for (int64_t i = 0; i < 200; ++i) ++counts[Sample(sampler, logits, i).id];
    EXPECT_EQ(counts[0] + counts[1], 200);
    EXPECT_GT(counts[0], 50);
    EXPECT_GT(counts[1], 50);
  }
}

TEST(Sampler, TheNumberFollowsSeedSequenceAndPositionAlone) {
  const auto logits = RandomLogits(500, 1);
  const auto tokens = [&](uint64_t seed, uint64_t sequence, int64_t first, int64_t step) {
    Sampler sampler = Make({.temperature = 1.5, .seed = seed}, 500, {}, sequence);
    std::vector<int32_t> ids(40);
    for (int64_t i = step > 0 ? 0 : 39; i >= 0 && i < 40; i += step) {
      ids[i] = Sample(sampler, logits, first + i).id;
    }
    return ids;
  };
  const auto reference = tokens(1, 0, 0, 1);
  EXPECT_EQ(tokens(1, 0, 0, -1), reference);  // whatever was drawn before
  EXPECT_NE(tokens(2, 0, 0, 1), reference);
  EXPECT_NE(tokens(1, 1, 0, 1), reference);
  EXPECT_NE(tokens(1, 0, 40, 1), reference);
}

// Logits of two meshes differ by rounding: where the margin is larger, the token is the same.
TEST(Sampler, TheMarginCoversRounding) {
  const auto disagreements = [](double temperature, double noise, double margin) {
    int64_t count = 0;
    Sampler sampler = Make({.temperature = temperature, .seed = 3}, 300);
    for (int64_t position = 0; position < 1000; ++position) {
      auto logits = RandomLogits(300, position);
      const Sampled one = Sample(sampler, logits, position);
      for (int64_t i = 0; i < 300; ++i) logits[i] += noise * NormalAt(99, position, i);
      const Sampled other = Sample(sampler, logits, position);
      count += one.margin > margin && one.id != other.id;
    }
    return count;
  };
  EXPECT_EQ(disagreements(0, 1e-5, 1e-4), 0);
  EXPECT_EQ(disagreements(1, 1e-5, 1e-4), 0);
  EXPECT_GT(disagreements(0, 0.1, 1e-4), 0);
  EXPECT_GT(disagreements(1, 0.1, 1e-4), 0);
}

TEST(Sampler, FloatAndDoubleRowsAgree) {
  const auto logits = RandomLogits(2000, 4);
  const std::vector<float> floats(logits.begin(), logits.end());
  const std::vector<double> doubles(floats.begin(), floats.end());
  const SamplingParams params{.temperature = 0.8, .top_p = 0.9, .top_k = 50};
  Sampler a = Make(params, 2000), b = Make(params, 2000);
  for (int64_t i = 0; i < 50; ++i) {
    const Sampled x = Sample(a, floats, i), y = Sample(b, doubles, i);
    EXPECT_EQ(x.id, y.id);
    EXPECT_EQ(x.log_p, y.log_p);
    EXPECT_EQ(x.margin, y.margin);
  }
}

}  // namespace
}  // namespace toroid
