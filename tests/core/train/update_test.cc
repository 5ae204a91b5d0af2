#include "core/train/update.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/train/clip.h"
#include "core/train/schedule.h"

namespace toroid {
namespace {

TEST(AdamWUpdate, CorrectsTheFirstMomentsFully) {
  const AdamWSpec spec = {.beta1 = 0.9, .beta2 = 0.95};
  const AdamWStep first = AdamWUpdate(spec, 1, 0.5, 1e-3, 1e-4);
  EXPECT_EQ(first.gradient_scale, 0.5);
  EXPECT_EQ(first.learning_rate, 1e-3);
  EXPECT_EQ(first.shrink, 1e-4);
  EXPECT_DOUBLE_EQ(first.m_correction, 1 - 0.9);
  EXPECT_DOUBLE_EQ(first.v_correction, 1 - 0.95);
  EXPECT_DOUBLE_EQ(AdamWUpdate(spec, 3, 1, 1e-3, 0).m_correction, 1 - 0.9 * 0.9 * 0.9);
  EXPECT_EQ(AdamWUpdate(spec, 100'000, 1, 1e-3, 0).v_correction, 1);
}

TEST(AdafactorUpdate, IsPalms) {
  const auto at = [](int64_t k, double squared_sum) {
    const double rate = LearningRate(PalmLearningRate(), k - 1);
    const WeightDecay decay = {.kind = WeightDecay::Kind::kRateSquared};
    return AdafactorUpdate(k, 1, rate, decay.Shrink({.group = "mlp"}, rate), squared_sum, 100);
  };
  EXPECT_EQ(at(1, 400).beta2, 0);
  EXPECT_DOUBLE_EQ(at(32, 400).beta2, 1 - 1.0 / 16);  // 32^0.8 = 2^4
  EXPECT_DOUBLE_EQ(at(1, 400).step_size, 0.01 * 2);
  EXPECT_DOUBLE_EQ(at(40'000, 400).step_size, 2.0 / 200);
  EXPECT_DOUBLE_EQ(at(40'000, 400).shrink, 1.0 / 40'000);
  // A parameter of zeros still moves.
  EXPECT_DOUBLE_EQ(at(1, 0).step_size, 0.01 * 1e-3);
  EXPECT_DOUBLE_EQ(at(1, 1e-6).step_size, 0.01 * 1e-3);
}

}  // namespace
}  // namespace toroid
