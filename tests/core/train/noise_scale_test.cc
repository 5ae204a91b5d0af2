// Linear regression with known covariance: y = x.w + e, x ~ N(0, S) with diagonal S, e ~ N(0, s^2).
// At a fixed distance d from the solution an example's gradient is x (x.d - e), hence
//   G = S d,   tr(Sigma) = tr(S) (d.S d + s^2) + |S d|^2   (Isserlis)
#include "core/train/noise_scale.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/random.h"

namespace toroid {
namespace {

constexpr int kDim = 8;
using Vector = std::array<double, kDim>;
constexpr Vector kVariance = {2, 1.5, 1, 1, 0.5, 0.5, 0.25, 0.1};
constexpr Vector kDistance = {0.5, -0.5, 1, 0.25, -1, 0.5, 2, 1};
constexpr double kNoise = 0.5;

double SquaredNorm(const Vector& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return sum;
}

double Expected() {
  double trace = 0, quadratic = 0, squared = 0;
  for (int i = 0; i < kDim; ++i) {
    trace += kVariance[i];
    quadratic += kVariance[i] * kDistance[i] * kDistance[i];
    squared += std::pow(kVariance[i] * kDistance[i], 2);
  }
  return (trace * (quadratic + kNoise * kNoise) + squared) / squared;
}

Vector ExampleGradient(uint64_t example) {
  Vector x;
  double error = -kNoise * NormalAt(1, kDim, example);
  for (int i = 0; i < kDim; ++i) {
    x[i] = std::sqrt(kVariance[i]) * NormalAt(1, i, example);
    error += x[i] * kDistance[i];
  }
  for (double& value : x) value *= error;
  return x;
}

// Mean over data ranks of |G_b|^2, and |G_B|^2, of a step with `batch` examples.
struct Norms {
  double small = 0, large = 0;
};
Norms StepNorms(int64_t step, int64_t batch, int64_t ranks) {
  Norms norms;
  Vector large = {};
  for (int64_t rank = 0; rank < ranks; ++rank) {
    Vector small = {};
    for (int64_t i = rank; i < batch; i += ranks) {
      const Vector gradient = ExampleGradient(uint64_t(step * batch + i));
      for (int j = 0; j < kDim; ++j) small[j] += gradient[j] / double(batch / ranks);
    }
    norms.small += SquaredNorm(small) / double(ranks);
    for (int j = 0; j < kDim; ++j) large[j] += small[j] / double(ranks);
  }
  norms.large = SquaredNorm(large);
  return norms;
}

TEST(GradientNoiseScale, FindsThatOfALinearRegression) {
  constexpr int64_t kBatch = 64;
  for (const int64_t ranks : {2, 4, 8}) {
    GradientNoiseScale scale;
    double quotients = 0;
    for (int64_t step = 0; step < 500; ++step) {
      const Norms norms = StepNorms(step, kBatch, ranks);
      scale.Add(double(kBatch / ranks), norms.small, double(kBatch), norms.large);
      GradientNoiseScale one;
      one.Add(double(kBatch / ranks), norms.small, double(kBatch), norms.large);
      quotients += one.trace / one.gradient / 500;
    }
    ASSERT_TRUE(scale.value().has_value());
    EXPECT_NEAR(*scale.value() / Expected(), 1, 0.05) << ranks;
    // Control: the mean of the steps' own quotients, which the two averages avoid, is not it.
    EXPECT_GT(std::abs(quotients / Expected() - 1), 0.05) << ranks;
  }
}

TEST(GradientNoiseScale, ForgetsAsItsDecaySays) {
  GradientNoiseScale scale = {.decay = 0.5};
  // |G_b|^2 = |G|^2 + tr / b exactly.
  const auto add = [&](double squared, double trace) {
    scale.Add(2, squared + trace / 2, 8, squared + trace / 8);
  };
  add(1, 4);
  EXPECT_DOUBLE_EQ(*scale.value(), 4);
  add(3, 6);
  EXPECT_DOUBLE_EQ(*scale.value(), (0.5 * 4 + 6) / (0.5 * 1 + 3));
}

TEST(GradientNoiseScale, SaysNothingWithoutMeaning) {
  GradientNoiseScale scale;
  EXPECT_FALSE(scale.value().has_value());
  scale.Add(2, 1, 8, 2);  // a larger batch with the longer gradient: noise
  EXPECT_FALSE(scale.value().has_value());
  GradientNoiseScale finite;
  finite.Add(2, 3, 8, 1.5);
  const double before = *finite.value();
  finite.Add(2, NAN, 8, 1);
  finite.Add(2, INFINITY, 8, 1);
  EXPECT_EQ(*finite.value(), before);
}

}  // namespace
}  // namespace toroid
