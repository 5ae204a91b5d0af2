// Dropout: rates and independence by statistics, the mask as a function of the element's place
// alone, the backward as the same mask.
#include "kernels/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/philox.h"

namespace toroid {
namespace {

constexpr int64_t kWidth = 37;

// Rows [first, first + rows) and columns [col, col + cols) of the whole tensor, of ones.
template <typename T>
std::vector<T> Mask(const DropoutSpec& spec, int64_t step, int64_t first, int64_t rows, int64_t col,
                    int64_t cols, int threads = 1) {
  ThreadPool pool(threads);
  std::vector<int64_t> ids(rows);
  std::iota(ids.begin(), ids.end(), first);
  std::vector<T> x(rows * cols, T(1));
  Dropout(pool, spec, step, ids.data(), col, x.data(), cols, x.data(), cols, rows, cols);
  return x;
}

DropoutSpec Spec(double rate) {
  return {.rate = rate, .seed = 11, .layer = 3, .site = 1, .width = kWidth};
}

// |share dropped - rate| in standard deviations of n draws.
double Deviations(const std::vector<double>& mask, double rate) {
  double dropped = 0;
  for (const double x : mask) dropped += x == 0;
  const double n = double(mask.size());
  return std::abs(dropped / n - rate) / std::sqrt(rate * (1 - rate) / n);
}

TEST(Dropout, DropsAtItsRateAndScalesWhatIsLeft) {
  for (const double rate : {0.0, 0.1, 0.5, 0.9}) {
    const std::vector<double> mask = Mask<double>(Spec(rate), 5, 0, 4000, 0, kWidth);
    for (const double x : mask) ASSERT_TRUE(x == 0 || x == 1 / (1 - rate));
    if (rate == 0) {
      EXPECT_EQ(mask, std::vector<double>(mask.size(), 1.0));
      continue;
    }
    EXPECT_LT(Deviations(mask, rate), 4) << rate;
    EXPECT_GT(Deviations(mask, rate * 1.1), 4) << rate;  // another rate would be seen
  }
}

// Each argument of the key decides, and neighbours are independent: the masks of two keys, and a
// mask and itself moved by one element, agree as often as chance has it.
TEST(Dropout, KeysAndNeighboursAreIndependent) {
  const double rate = 0.3, chance = rate * rate + (1 - rate) * (1 - rate);
  const std::vector<double> base = Mask<double>(Spec(rate), 5, 0, 2000, 0, kWidth);
  const auto agreement = [&](const std::vector<double>& other, size_t shift) {
    double equal = 0;
    const size_t n = base.size() - shift;
    for (size_t i = 0; i < n; ++i) equal += base[i] == other[i + shift];
    return std::abs(equal / double(n) - chance) / std::sqrt(chance * (1 - chance) / double(n));
  };
  const std::vector<std::function<void(DropoutSpec&, int64_t&)>> changes = {
      [](DropoutSpec& s, int64_t&) { s.seed = 12; }, [](DropoutSpec& s, int64_t&) { s.layer = 4; },
      [](DropoutSpec& s, int64_t&) { s.site = 2; }, [](DropoutSpec&, int64_t& step) { step = 6; }};
  for (size_t i = 0; i < changes.size(); ++i) {
    DropoutSpec spec = Spec(rate);
    int64_t step = 5;
    changes[i](spec, step);
    EXPECT_LT(agreement(Mask<double>(spec, step, 0, 2000, 0, kWidth), 0), 4) << i;
  }
  for (const size_t shift : {1, 2, 3, 4, int(kWidth)}) EXPECT_LT(agreement(base, shift), 4);
  EXPECT_GT(agreement(base, 0), 100);  // the same key is the same mask
}

// Any cut into rows and columns, in any order of rows, gives the elements of the whole.
TEST(Dropout, IsTheSameOnEveryMesh) {
  const DropoutSpec spec = Spec(0.4);
  const std::vector<double> whole = Mask<double>(spec, 9, 100, 24, 0, kWidth);
  for (const int64_t parts : {1, 2, 3, 5}) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t col = part * kWidth / parts, cols = (part + 1) * kWidth / parts - col;
      const std::vector<double> mine = Mask<double>(spec, 9, 100, 24, col, cols);
      for (int64_t row = 0; row < 24; ++row) {
        for (int64_t i = 0; i < cols; ++i) {
          ASSERT_EQ(mine[row * cols + i], whole[row * kWidth + col + i]);
        }
      }
    }
  }
  // Striped rows of a ring rank, falling: the row's number decides, not its place.
  ThreadPool pool(1);
  std::vector<int64_t> ids;
  for (int64_t row = 23; row >= 0; row -= 3) ids.push_back(100 + row);
  std::vector<double> x(ids.size() * kWidth, 1.0);
  Dropout(pool, spec, 9, ids.data(), 0, x.data(), kWidth, x.data(), kWidth, int64_t(ids.size()),
          kWidth);
  for (size_t i = 0; i < ids.size(); ++i) {
    for (int64_t j = 0; j < kWidth; ++j) {
      ASSERT_EQ(x[i * kWidth + j], whole[(ids[i] - 100) * kWidth + j]);
    }
  }
  // Negative control: rows numbered from the rank's own zero.
  EXPECT_NE(Mask<double>(spec, 9, 0, 24, 0, kWidth), whole);
}

TEST(Dropout, FloatAndThreadsChangeNothing) {
  const DropoutSpec spec = {.rate = 0.25, .seed = 3, .width = 9000};
  const std::vector<float> one = Mask<float>(spec, 1, 7, 5, 0, 9000, 1);
  EXPECT_EQ(one, Mask<float>(spec, 1, 7, 5, 0, 9000, 3));
  const std::vector<double> wide = Mask<double>(spec, 1, 7, 5, 0, 9000, 2);
  for (size_t i = 0; i < one.size(); ++i) ASSERT_EQ(one[i], float(wide[i]));
}

// out = m x: the gradient of sum(c out) is m c, the op itself applied to c.
TEST(Dropout, BackwardIsTheSameMask) {
  ThreadPool pool(1);
  const DropoutSpec spec = Spec(0.5);
  const int64_t rows = 6;
  std::vector<int64_t> ids(rows);
  std::iota(ids.begin(), ids.end(), 40);
  std::vector<double> x(rows * kWidth), c(rows * kWidth), dx(rows * kWidth);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(double(i)), c[i] = std::cos(double(i));
  const auto loss = [&] {
    std::vector<double> out(x.size());
    Dropout(pool, spec, 2, ids.data(), 0, x.data(), kWidth, out.data(), kWidth, rows, kWidth);
    return std::inner_product(out.begin(), out.end(), c.begin(), 0.0);
  };
  const auto differences = [&](int64_t step) {
    Dropout(pool, spec, step, ids.data(), 0, c.data(), kWidth, dx.data(), kWidth, rows, kWidth);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double before = x[i];
      x[i] = before + 0.5;
      const double above = loss();
      x[i] = before - 0.5;
      worst = std::max(worst, std::abs(above - loss() - dx[i]));  // linear: no error but rounding
      x[i] = before;
    }
    return worst;
  };
  EXPECT_LT(differences(2), 1e-12);
  EXPECT_GT(differences(3), 0.1);  // negative control: the next step's mask
}

// Known answers of Philox4x32-10 from the paper's library (kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

}  // namespace
}  // namespace toroid
