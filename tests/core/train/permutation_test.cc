#include "core/train/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace toroid {
namespace {

std::vector<int64_t> All(int64_t n, uint64_t seed, uint64_t stream) {
  const KeyedPermutation permutation(n, seed, stream);
  std::vector<int64_t> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(permutation.At(i));
  return values;
}

TEST(KeyedPermutation, HitsEachNumberOnce) {
  std::vector<int64_t> sizes = {1000, 4095, 4096, 4097, 65'537};
  for (int64_t n = 1; n <= 130; ++n) sizes.push_back(n);
  for (const int64_t n : sizes) {
    for (uint64_t stream = 0; stream < 3; ++stream) {
      std::vector<bool> seen(size_t(n), false);
      for (const int64_t value : All(n, 5, stream)) {
        ASSERT_TRUE(value >= 0 && value < n) << n;
        ASSERT_FALSE(seen[size_t(value)]) << n << ": " << value << " twice";
        seen[size_t(value)] = true;
      }
    }
  }
}

TEST(KeyedPermutation, IsAnotherOneForEachKey) {
  EXPECT_EQ(All(100, 1, 2), All(100, 1, 2));
  EXPECT_NE(All(100, 1, 2), All(100, 2, 2));
  EXPECT_NE(All(100, 1, 2), All(100, 1, 3));
}

// Over many keys number i lands in each of ten cells alike: chi^2 with nine degrees of freedom has
// mean 9 and deviation 4.2. The same holds for the distance between the places of neighbours. A
// shuffle that only rotates passes the first and fails the second.
double ChiSquared(const std::vector<int64_t>& cells) {
  double sum = 0, squares = 0;
  for (const int64_t count : cells) sum += double(count);
  const double mean = sum / double(cells.size());
  for (const int64_t count : cells) squares += (double(count) - mean) * (double(count) - mean);
  return squares / mean;
}

TEST(KeyedPermutation, LooksLikeAShuffle) {
  constexpr int64_t kN = 1000;
  constexpr uint64_t kKeys = 5000;
  for (const int64_t i : {int64_t{0}, int64_t{1}, int64_t{499}, kN - 2}) {
    std::vector<int64_t> places(10), distances(10), rotated(10);
    for (uint64_t key = 0; key < kKeys; ++key) {
      const KeyedPermutation permutation(kN, key, 0);
      const int64_t here = permutation.At(i), next = permutation.At(i + 1);
      ++places[size_t(here / 100)];
      ++distances[size_t((next - here + kN) % kN / 100)];
      ++rotated[size_t((here + 1 - here + kN) % kN / 100)];
    }
    EXPECT_LT(ChiSquared(places), 30) << i;
    EXPECT_LT(ChiSquared(distances), 30) << i;
    EXPECT_GT(ChiSquared(rotated), 30) << i;
  }
}

TEST(KeyedPermutation, IsPinned) {
  EXPECT_EQ(All(10, 1, 0), (std::vector<int64_t>{6, 1, 7, 3, 5, 0, 9, 4, 8, 2}));
  EXPECT_EQ(KeyedPermutation(int64_t{1} << 40, 1, 0).At(12'345), 529'292'858'605);
}

}  // namespace
}  // namespace toroid
