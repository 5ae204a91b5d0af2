// The outer step of pods against its formula in double.
#include "kernels/outer_step.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kSizes[] = {1, 7, 64, 257, 40000};

// Five steps as torch.optim.SGD has them: buf = momentum buf + grad, grad += momentum buf,
// p -= lr grad. `plain`: momentum without Nesterov's look ahead.
Array ByHand(Array theta, const OuterStepSpec& spec, bool plain) {
  Array buffer(theta.size());
  for (int k = 1; k <= 5; ++k) {
    const Array delta = RandomArray(int64_t(theta.size()), 10 + k, 0.1);
    for (size_t i = 0; i < theta.size(); ++i) {
      buffer[i] = buffer[i] * spec.momentum + delta[i];
      const double step = plain ? buffer[i] : delta[i] + spec.momentum * buffer[i];
      theta[i] -= spec.learning_rate * step;
    }
  }
  return theta;
}

template <typename T>
std::vector<T> RunOuterSteps(const Array& start, const OuterStepSpec& spec, int threads = 2) {
  ThreadPool pool(threads);
  const int64_t n = int64_t(start.size());
  std::vector<T> theta = As<T>(start), v(n);
  for (int k = 1; k <= 5; ++k) {
    const std::vector<T> delta = As<T>(RandomArray(n, 10 + k, 0.1));
    OuterStep<T>(pool, spec, n, delta.data(), theta.data(), v.data());
  }
  return theta;
}

TEST(OuterStep, FiveStepsMatchTheFormula) {
  const OuterStepSpec spec;
  for (int64_t n : kSizes) {
    const Array start = RandomArray(n, 1);
    EXPECT_TRUE(AllClose(RunOuterSteps<double>(start, spec), ByHand(start, spec, false)));
    EXPECT_TRUE(AllClose(RunOuterSteps<float>(start, spec), ByHand(start, spec, false), 2e-6));
    // Controls: without Nesterov, with other constants.
    EXPECT_FALSE(AllClose(RunOuterSteps<float>(start, spec), ByHand(start, spec, true), 1e-4));
    EXPECT_FALSE(
        AllClose(RunOuterSteps<float>(start, {0.7, 0.8}), ByHand(start, spec, false), 1e-4));
    EXPECT_FALSE(
        AllClose(RunOuterSteps<float>(start, {0.6, 0.9}), ByHand(start, spec, false), 1e-4));
  }
  const Array start = RandomArray(50001, 1);
  EXPECT_EQ(RunOuterSteps<float>(start, spec, 1), RunOuterSteps<float>(start, spec, 3));
}

// Rate 1 without momentum takes what the inner steps made: theta - (theta - made).
TEST(OuterStep, AtRateOneItIsWhatTheInnerStepsMade) {
  ThreadPool pool(1);
  const Array start = RandomArray(1000, 1);
  std::vector<double> theta = start, v(1000), delta(1000);
  std::vector<double> made = RandomArray(1000, 2);
  for (int i = 0; i < 1000; ++i) delta[i] = start[i] - made[i];
  OuterStep<double>(pool, {1, 0}, 1000, delta.data(), theta.data(), v.data());
  EXPECT_TRUE(AllClose(theta, made, 1e-15));
  EXPECT_FALSE(AllClose(theta, start, 1e-2));
}

TEST(MixWeights, IsTheFormulaAndExactAtBothEnds) {
  for (int64_t n : kSizes) {
    const Array a = RandomArray(n, 1), b = RandomArray(n, 2);
    ThreadPool pool(2);
    Array expected(n);
    for (int64_t i = 0; i < n; ++i) expected[i] = 0.25 * a[i] + 0.75 * b[i];
    const auto mixed = [&](auto zero, double alpha) {
      auto own = As<decltype(zero)>(a);
      const auto theta = As<decltype(zero)>(b);
      MixWeights(pool, alpha, n, theta.data(), own.data());
      return own;
    };
    EXPECT_TRUE(AllClose(mixed(0.0, 0.25), expected));
    EXPECT_TRUE(AllClose(mixed(0.0f, 0.25), expected, 1e-6));
    EXPECT_FALSE(AllClose(mixed(0.0f, 0.75), expected, 1e-3));  // control: the other way round
    EXPECT_EQ(mixed(0.0f, 1), As<float>(a));
    EXPECT_EQ(mixed(0.0f, 0), As<float>(b));
  }
  ThreadPool pool(1);
  float own = 1, theta = -0.0f;  // 0 * 1 + -0 would be +0
  MixWeights(pool, 0, 1, &theta, &own);
  EXPECT_TRUE(std::signbit(own));
  own = 1, theta = NAN;
  MixWeights(pool, 1, 1, &theta, &own);
  EXPECT_EQ(own, 1.0f);
}

}  // namespace
}  // namespace toroid
