// Central differences, against which gradients are proven.
#pragma once

#include <gtest/gtest.h>

#include "tests/reference/ops.h"
#include "tests/support/all_close.h"

namespace toroid {

// True if gradient_i is d sum(dout * out(x)) / dx_i for every i: by the five-point rule, whose
// error is of order h^4. The tolerance is that of the differences, not of the gradient.
template <typename Out>
::testing::AssertionResult MatchesDifferences(Out out, reference::Array x,
                                              const reference::Array& dout,
                                              const reference::Array& gradient) {
  constexpr double h = 2e-3;
  reference::Array differences;
  for (double& element : x) {
    const double at = element;
    const auto value = [&](double step) {
      element = at + step * h;
      const reference::Array y = out(x);
      element = at;
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += dout[i] * y[i];
      return sum;
    };
    differences.push_back((8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * h));
  }
  return AllClose(gradient, differences, 1e-8);
}

}  // namespace toroid
