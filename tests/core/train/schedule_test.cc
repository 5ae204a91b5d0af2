#include "core/train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace toroid {
namespace {

using Kind = LearningRateSchedule::Kind;
using testing::HasSubstr;

// Formulas are written in k = 1, 2, ...
double At(const LearningRateSchedule& schedule, int64_t k) { return LearningRate(schedule, k - 1); }

TEST(LearningRate, WarmUpIsLinearAndReachesThePeak) {
  const LearningRateSchedule s = {.kind = Kind::kConstant, .peak = 0.5, .warmup = 10};
  EXPECT_DOUBLE_EQ(At(s, 1), 0.05);
  EXPECT_DOUBLE_EQ(At(s, 9), 0.45);
  EXPECT_DOUBLE_EQ(At(s, 10), 0.5);
  EXPECT_DOUBLE_EQ(At(s, 11), 0.5);
  EXPECT_DOUBLE_EQ(At({.kind = Kind::kConstant, .peak = 0.5}, 1), 0.5);
}

TEST(LearningRate, Cosine) {
  const LearningRateSchedule s = {
      .kind = Kind::kCosine, .peak = 1, .warmup = 100, .final_rate = 0.1, .steps = 1100};
  ASSERT_TRUE(Validate(s).ok());
  EXPECT_DOUBLE_EQ(At(s, 100), 1);
  EXPECT_DOUBLE_EQ(At(s, 350), 0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2);
  EXPECT_DOUBLE_EQ(At(s, 600), 0.55);
  EXPECT_DOUBLE_EQ(At(s, 1100), 0.1);
  EXPECT_DOUBLE_EQ(At(s, 5000), 0.1);
}

TEST(LearningRate, WarmUpStableDecay) {
  const LearningRateSchedule s = {
      .kind = Kind::kWsd, .peak = 1, .warmup = 10, .final_rate = 0.2, .steps = 100, .decay = 20};
  ASSERT_TRUE(Validate(s).ok());
  EXPECT_DOUBLE_EQ(At(s, 5), 0.5);
  EXPECT_DOUBLE_EQ(At(s, 10), 1);
  EXPECT_DOUBLE_EQ(At(s, 80), 1);
  EXPECT_DOUBLE_EQ(At(s, 81), 0.96);
  EXPECT_DOUBLE_EQ(At(s, 90), 0.6);
  EXPECT_DOUBLE_EQ(At(s, 100), 0.2);
  EXPECT_DOUBLE_EQ(At(s, 101), 0.2);
}

TEST(LearningRate, Palm) {
  const LearningRateSchedule s = PalmLearningRate();
  ASSERT_TRUE(Validate(s).ok());
  EXPECT_EQ(At(s, 1), 1e-2);
  EXPECT_EQ(At(s, 10'000), 1e-2);
  for (const int64_t k : {10'001, 20'000, 50'000, 115'000, 255'000}) {
    EXPECT_NEAR(At(s, k) * std::sqrt(double(k)), 1, 1e-15) << k;
  }
  EXPECT_LT(At(s, 10'001), 1e-2);
}

TEST(LearningRate, WrongNumbersAreNamed) {
  struct Case {
    LearningRateSchedule schedule;
    const char* message;
  };
  const Case cases[] = {
      {{.peak = 0}, "the peak must be a number above 0, not 0"},
      {{.peak = NAN}, "the peak must be"},
      {{.peak = INFINITY}, "the peak must be"},
      {{.peak = 1, .warmup = -1}, "warm-up of -1 steps"},
      {{.peak = 1, .final_rate = 0.1}, "only cosine and WSD"},
      {{.peak = 1, .steps = 10}, "only cosine and WSD"},
      {{.peak = 1, .decay = 10}, "only WSD has"},
      {{.peak = 1, .hold = 10}, "only the inverse square root has"},
      {{.kind = Kind::kCosine, .peak = 1, .final_rate = 2, .steps = 9},
       "0 to 1, the peak, not be 2"},
      {{.kind = Kind::kCosine, .peak = 1, .final_rate = NAN, .steps = 9}, "the final rate"},
      {{.kind = Kind::kCosine, .peak = 1, .warmup = 10, .steps = 10}, "leaves none of 10"},
      {{.kind = Kind::kCosine, .peak = 1}, "leaves none of 0"},
      {{.kind = Kind::kWsd, .peak = 1, .steps = 9}, "at least one step of decay"},
      {{.kind = Kind::kWsd, .peak = 1, .warmup = 5, .steps = 9, .decay = 5}, "more than all 9"},
      {{.kind = Kind::kInverseSqrt, .peak = 1}, "at least one step of hold"},
      {{.kind = Kind::kInverseSqrt, .peak = 1, .warmup = 5, .hold = 4}, "after the hold of 4"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(std::string(Validate(c.schedule).message()), HasSubstr(c.message));
  }
}

TEST(BatchRamp, PalmGrowsAtTheStepsOfThePaper) {
  const BatchRamp ramp = PalmBatchRamp();
  ASSERT_TRUE(Validate(ramp, 2048).ok());
  EXPECT_EQ(ramp.Tokens(0), 512 * 2048);
  EXPECT_EQ(ramp.Tokens(49'999), 512 * 2048);
  EXPECT_EQ(ramp.Tokens(50'000), 1024 * 2048);
  EXPECT_EQ(ramp.Tokens(114'999), 1024 * 2048);
  EXPECT_EQ(ramp.Tokens(115'000), 2048 * 2048);
  // The whole run, 255,000 steps: the paper's 780 billion tokens.
  EXPECT_EQ(ramp.TokensBefore(255'000),
            int64_t{2048} * (50'000 * 512 + 65'000 * 1024 + int64_t{140'000} * 2048));
  EXPECT_NEAR(double(ramp.TokensBefore(255'000)), 780e9, 5e9);
}

TEST(BatchRamp, TokensBeforeIsTheSumOfTokens) {
  const BatchRamp ramp = {{{0, 3}, {2, 5}, {3, 1}, {10, 8}}};
  int64_t sum = 0;
  for (int64_t step = 0; step < 20; ++step) {
    EXPECT_EQ(ramp.TokensBefore(step), sum) << step;
    sum += ramp.Tokens(step);
  }
  EXPECT_EQ(ramp.TokensBefore(20), sum);
}

TEST(BatchRamp, WrongStagesAreNamed) {
  struct Case {
    BatchRamp ramp;
    int64_t sequence;
    const char* message;
  };
  const Case cases[] = {
      {{}, 8, "must begin at step 0"},
      {{{{1, 8}}}, 8, "must begin at step 0"},
      {{{{0, 8}}}, 0, "sequence length: 0"},
      {{{{0, 8}}}, int64_t{1} << 31, "sequence length"},
      {{{{0, 20}}}, 8, "from step 0: 20 are no whole sequences of 8; take 16 or 24"},
      {{{{0, 4}}}, 8, "4 are no whole sequences of 8; take 8"},
      {{{{0, 0}}}, 8, "take 8"},
      {{{{0, -8}}}, 8, "take 8"},
      {{{{0, 8}, {5, 16}, {5, 24}}}, 8, "from step 5: stages must ascend"},
      {{{{0, 8}, {int64_t{1} << 32, 16}}}, 8, "more than 2^31"},
      {{{{0, int64_t{1} << 32}}}, 8, "more than 2^31"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(std::string(Validate(c.ramp, c.sequence).message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace toroid
