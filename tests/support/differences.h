// Central differences, against which gradients are proven.
#pragma once

#include <gtest/gtest.h>

#include "tests/reference/ops.h"
#include "tests/support/all_close.h"

namespace toroid {

// The derivative of value() by an element, by the five-point rule, whose error is of order h^4.
template <typename Value>
double CentralDifference(double& element, double h, const Value& value) {
  const double at = element;
  const auto moved = [&](double steps) {
    element = at + steps * h;
    const double y = value();
    element = at;
    return y;
  };
  return (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h);
}

// True if gradient_i is d sum(dout * out(x)) / dx_i for every i. The tolerance is that of the
// differences, not of the gradient.
template <typename Out>
::testing::AssertionResult MatchesDifferences(Out out, reference::Array x,
                                              const reference::Array& dout,
                                              const reference::Array& gradient) {
  reference::Array differences;
  for (double& element : x) {
    differences.push_back(CentralDifference(element, 2e-3, [&] {
      const reference::Array y = out(x);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += dout[i] * y[i];
      return sum;
    }));
  }
  return AllClose(gradient, differences, 1e-8);
}

}  // namespace toroid
