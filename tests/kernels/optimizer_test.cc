// The optimizers' updates and the squared sum, against their formulas written out in double.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/reduce.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kSizes[] = {0, 1, 7, 64, 257, 40000};

// Weights after each of ten steps; `wrong` is a step whose correction is off, none if negative.
Array AdamWByHand(Array w, const AdamWSpec& spec, double lr, double decay, double scale,
                  int wrong) {
  const size_t n = w.size();
  Array m(n), v(n);
  for (int k = 1; k <= 10; ++k) {
    const Array g = RandomArray(int64_t(n), 10 + k);
    for (size_t i = 0; i < n; ++i) {
      const double gradient = scale * g[i];
      m[i] = spec.beta1 * m[i] + (1 - spec.beta1) * gradient;
      v[i] = spec.beta2 * v[i] + (1 - spec.beta2) * gradient * gradient;
      const double m_hat = m[i] / (1 - std::pow(spec.beta1, k == wrong ? k + 1 : k));
      const double v_hat = v[i] / (1 - std::pow(spec.beta2, k));
      w[i] -= lr * (m_hat / (std::sqrt(v_hat) + spec.epsilon) + decay * w[i]);
    }
  }
  return w;
}

template <typename T>
std::vector<T> RunAdamW(const Array& start, const AdamWSpec& spec, double lr, double decay,
                        double scale, int threads = 2, int64_t cut = 0) {
  ThreadPool pool(threads);
  const int64_t n = int64_t(start.size());
  std::vector<T> w = As<T>(start), m(n), v(n);
  for (int k = 1; k <= 10; ++k) {
    const std::vector<T> g = As<T>(RandomArray(n, 10 + k));
    AdamWStep step = {scale, lr, lr * decay, 1 - std::pow(spec.beta1, k),
                      1 - std::pow(spec.beta2, k)};
    AdamW<T>(pool, spec, &step, cut, g.data(), w.data(), m.data(), v.data());
    AdamW<T>(pool, spec, &step, n - cut, g.data() + cut, w.data() + cut, m.data() + cut,
             v.data() + cut);
  }
  return w;
}

TEST(AdamW, TenStepsMatchTheFormula) {
  AdamWSpec spec;
  spec.beta2 = 0.99, spec.epsilon = 1e-3;
  for (int64_t n : kSizes) {
    const Array start = RandomArray(n, 1);
    const Array expected = AdamWByHand(start, spec, 1e-2, 0.1, 0.5, -1);
    EXPECT_TRUE(AllClose(RunAdamW<float>(start, spec, 1e-2, 0.1, 0.5), expected, 1e-6));
    EXPECT_TRUE(AllClose(RunAdamW<double>(start, spec, 1e-2, 0.1, 0.5), expected));
    if (n == 0) continue;  // negative controls: a wrong correction, decay, scale
    EXPECT_FALSE(AllClose(RunAdamW<double>(start, spec, 1e-2, 0.1, 0.5),
                          AdamWByHand(start, spec, 1e-2, 0.1, 0.5, 3), 1e-6));
    EXPECT_FALSE(AllClose(RunAdamW<double>(start, spec, 1e-2, 0, 0.5), expected, 1e-6));
    EXPECT_FALSE(AllClose(RunAdamW<double>(start, spec, 1e-2, 0.1, 0.6), expected, 1e-6));
  }
}

TEST(AdamW, BitsDependNeitherOnThreadsNorOnTheShard) {
  const Array start = RandomArray(50001, 1);
  const std::vector<float> one = RunAdamW<float>(start, {}, 1e-3, 0.1, 1, 1);
  EXPECT_EQ(one, RunAdamW<float>(start, {}, 1e-3, 0.1, 1, 3));
  for (int64_t cut : {1, 3, 17000}) {
    EXPECT_EQ(one, RunAdamW<float>(start, {}, 1e-3, 0.1, 1, 2, cut));
  }
}

// PaLM's schedule over ten steps; or with a wrong beta2 of 0.9 instead of 1 - k^-0.8.
Array AdafactorByHand(Array w, bool wrong_beta2) {
  const size_t n = w.size();
  Array m(n), v(n);
  for (int k = 1; k <= 10; ++k) {
    const Array g = RandomArray(int64_t(n), 10 + k);
    double squares = 0;
    for (double x : w) squares += x * x;
    const double lr = 1e-2, rms = std::sqrt(squares / double(n));
    const double beta2 = wrong_beta2 ? 0.9 : 1 - std::pow(k, -0.8);
    for (size_t i = 0; i < n; ++i) {
      v[i] = beta2 * v[i] + (1 - beta2) * (g[i] * g[i] + 1e-30);
      m[i] = 0.9 * m[i] + 0.1 * g[i] / std::sqrt(v[i]);
      w[i] -= lr * std::max(1e-3, rms) * m[i] + lr * lr * w[i];
    }
  }
  return w;
}

template <typename T>
std::vector<T> RunAdafactor(const Array& start, int threads = 2) {
  ThreadPool pool(threads);
  const int64_t n = int64_t(start.size());
  std::vector<T> w = As<T>(start), m(n), v(n);
  for (int k = 1; k <= 10; ++k) {
    const std::vector<T> g = As<T>(RandomArray(n, 10 + k));
    double squares = 0;
    AddSquaredSum(pool, w.data(), n, &squares);
    const double lr = 1e-2;
    const AdafactorStep step = {1, lr * std::max(1e-3, std::sqrt(squares / double(n))), lr * lr,
                                1 - std::pow(k, -0.8)};
    Adafactor<T>(pool, {}, &step, n, g.data(), w.data(), m.data(), v.data());
  }
  return w;
}

TEST(Adafactor, TenStepsMatchTheFormula) {
  for (int64_t n : kSizes) {
    if (n == 0) continue;
    const Array start = RandomArray(n, 1);
    const Array expected = AdafactorByHand(start, false);
    EXPECT_TRUE(AllClose(RunAdafactor<float>(start), expected, 2e-6));
    EXPECT_TRUE(AllClose(RunAdafactor<double>(start), expected));
    EXPECT_FALSE(AllClose(RunAdafactor<double>(start), AdafactorByHand(start, true), 1e-6));
  }
  const Array start = RandomArray(50001, 1);
  EXPECT_EQ(RunAdafactor<float>(start, 1), RunAdafactor<float>(start, 3));
}

TEST(Adafactor, AGradientOfZeroMovesNothing) {
  ThreadPool pool(1);
  std::vector<float> w = {1, 2}, m(2), v(2);
  const std::vector<float> g = {0, 1};
  const AdafactorStep step = {1, 0.1, 0, 0};  // step 1: v = g^2 + 1e-30
  Adafactor<float>(pool, {}, &step, 2, g.data(), w.data(), m.data(), v.data());
  EXPECT_EQ(w[0], 1.0f);
  EXPECT_NEAR(w[1], 2.0f - 0.1f * 0.1f, 1e-6f);
}

TEST(AddSquaredSum, IsExactInDoubleAndShowsNan) {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{257}, int64_t{100003}}) {
    const Array x = RandomArray(n, 1);
    long double expected = 5;
    for (double value : x) expected += static_cast<long double>(value) * value;
    const auto run = [&](auto zero, int threads) {
      ThreadPool pool(threads);
      const auto narrow = As<decltype(zero)>(x);
      double sum = 5;
      AddSquaredSum(pool, narrow.data(), n, &sum);
      return sum;
    };
    EXPECT_NEAR(run(0.0f, 2), double(expected), 1e-13 * double(expected));
    EXPECT_NEAR(run(0.0, 2), double(expected), 1e-13 * double(expected));
    EXPECT_EQ(run(0.0f, 1), run(0.0f, 4));
    if (n == 0) continue;
    ThreadPool pool(2);
    std::vector<float> planted = As<float>(x);
    planted[n / 2] = NAN;
    double sum = 0;
    AddSquaredSum(pool, planted.data(), n, &sum);
    EXPECT_TRUE(std::isnan(sum));
  }
}

}  // namespace
}  // namespace toroid
