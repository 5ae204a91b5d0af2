#include "tests/support/golden.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gtest/gtest.h"

namespace toroid {
namespace {

TEST(GoldenTest, MeanLossIsTheMeanOfTheLogprobs) {
  const Golden golden = Golden::Load("smollm2/score");
  const std::vector<double> logprobs = golden.Array("logprobs_f64");
  ASSERT_EQ(golden.Ids("ids").size(), 1021u);
  ASSERT_EQ(logprobs.size(), 1020u);
  const double mean = -std::accumulate(logprobs.begin(), logprobs.end(), 0.0) / 1020;
  EXPECT_NEAR(mean, golden["mean_nll_f64"].get<double>(), 1e-12);
  // The float32 run differs, so the two arrays were not mistaken for each other.
  EXPECT_NE(golden.Array("logprobs"), logprobs);
}

TEST(GoldenTest, LastRowOfTheLogitsIsTheFloat64Row) {
  const Golden golden = Golden::Load("llama/expected");
  const std::vector<int64_t> shape = golden.Shape("logits");
  ASSERT_EQ(shape, (std::vector<int64_t>{golden["tokens"].get<int64_t>(), 163}));
  const std::vector<double> logits = golden.Array("logits");
  const std::vector<double> last = golden.Array("last_logits_f64");
  double error = 0, distance_to_previous_row = 0;
  for (int64_t v = 0; v < 163; ++v) {
    error = std::max(error, std::abs(logits[(shape[0] - 1) * 163 + v] - last[v]));
    distance_to_previous_row =
        std::max(distance_to_previous_row, std::abs(logits[(shape[0] - 2) * 163 + v] - last[v]));
  }
  EXPECT_LT(error, 1e-5);
  EXPECT_GT(distance_to_previous_row, 0.1);
}

TEST(GoldenDeathTest, NamesWhatIsMissing) {
  EXPECT_DEATH(Golden::Load("no/such"), "no/such.json: not found");
  const Golden golden = Golden::Load("llama/expected");
  EXPECT_DEATH(golden.Array("absent"), "llama/expected.json: no array absent");
  EXPECT_DEATH(golden["absent"], "llama/expected.json: no field absent");
}

}  // namespace
}  // namespace toroid
