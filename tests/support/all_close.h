// Comparison with the double reference: max |x - ref| / max |ref|, against one table of tolerances
// (a result in T is held to Tolerance<T>). NaN, an infinity where the reference has none, and a
// different size are never close.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace toroid {

// The forward and gradient tolerances per type of arithmetic.
template <typename T>
struct Tolerance;
template <>
struct Tolerance<double> {
  static constexpr double kForward = 1e-12, kGradient = 1e-11;
};
template <>
struct Tolerance<float> {
  static constexpr double kForward = 1e-5, kGradient = 5e-5;
};

// Infinite if sizes, infinities or NaN differ; 0 for empty or equal. With a reference of zeros only
// it is the absolute error.
template <typename A, typename B>
double RelativeError(const std::vector<A>& x, const std::vector<B>& reference) {
  if (x.size() != reference.size()) return INFINITY;
  double largest = 0, error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = double(x[i]), b = double(reference[i]);
    if (std::isinf(b) ? a != b : !std::isfinite(a)) return INFINITY;
    if (std::isinf(b)) continue;
    largest = std::max(largest, std::abs(b));
    error = std::max(error, std::abs(a - b));
  }
  return largest > 0 ? error / largest : error;
}

// The largest difference; infinite if sizes differ or one is NaN.
inline double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

template <typename A, typename B>
::testing::AssertionResult AllClose(const std::vector<A>& x, const std::vector<B>& reference,
                                    double tolerance = Tolerance<A>::kForward) {
  const double error = RelativeError(x, reference);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  size_t worst = 0;
  double largest = -1;
  for (size_t i = 0; i < std::min(x.size(), reference.size()); ++i) {
    const double difference = std::abs(double(x[i]) - double(reference[i]));
    if (!(difference <= largest)) worst = i, largest = difference;
  }
  auto failure = ::testing::AssertionFailure()
                 << "error " << error << " > " << tolerance << " (sizes " << x.size() << " and "
                 << reference.size() << ")";
  if (worst < x.size() && worst < reference.size()) {
    failure << ", worst at " << worst << ": " << x[worst] << " vs " << reference[worst];
  }
  return failure;
}

}  // namespace toroid
