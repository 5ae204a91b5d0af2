#include "core/train/clip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/io/random_model.h"

namespace toroid {
namespace {

using testing::HasSubstr;

TEST(ClipGlobalNorm, ScalesOnlyWhatIsTooLong) {
  EXPECT_EQ(ClipGlobalNorm(25, 1).norm, 5);
  EXPECT_EQ(ClipGlobalNorm(25, 1).factor, 0.2);
  EXPECT_EQ(ClipGlobalNorm(25, 5).factor, 1);
  EXPECT_EQ(ClipGlobalNorm(0.25, 1).factor, 1);
  EXPECT_EQ(ClipGlobalNorm(0, 1).factor, 1);
  EXPECT_EQ(ClipGlobalNorm(25, 0).factor, 1) << "0 never clips";
}

TEST(ClipGlobalNorm, TellsWhatIsNotFinite) {
  EXPECT_TRUE(ClipGlobalNorm(1e300, 1).finite);
  for (const double sum : {double(NAN), double(INFINITY)}) {
    for (const double most : {0.0, 1.0}) EXPECT_FALSE(ClipGlobalNorm(sum, most).finite);
  }
}

TEST(SkippedSteps, CountsAndGivesUpAfterTooManyInARow) {
  const GradientClip good = ClipGlobalNorm(1, 1), bad = ClipGlobalNorm(NAN, 1);
  SkippedSteps skipped;
  EXPECT_TRUE(skipped.Count(7, bad, "w", 2).ok());
  EXPECT_TRUE(skipped.Count(8, bad, "w", 2).ok());
  EXPECT_TRUE(skipped.Count(9, good, "", 2).ok());
  EXPECT_EQ(skipped.total, 2);
  EXPECT_EQ(skipped.in_a_row, 0);
  EXPECT_TRUE(skipped.Count(10, bad, "w", 2).ok());
  EXPECT_TRUE(skipped.Count(11, bad, "w", 2).ok());
  const absl::Status status = skipped.Count(12, bad, "layers.3.mlp", 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 13"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("layers.3.mlp"));
  EXPECT_EQ(skipped.total, 5);
}

TEST(WeightDecay, SparesGainsAndBiases) {
  const WeightDecay adamw = {.rate = 0.1};
  const WeightDecay palm = {.kind = WeightDecay::Kind::kRateSquared};
  for (const char* group : {"norm", "bias"}) {
    EXPECT_EQ(adamw.Shrink({.group = group}, 0.01), 0) << group;
    EXPECT_EQ(palm.Shrink({.group = group}, 0.01), 0) << group;
  }
  for (const char* group : {"embedding", "attention", "mlp", "head"}) {
    EXPECT_EQ(adamw.Shrink({.group = group}, 0.01), 0.1 * 0.01) << group;
    EXPECT_EQ(palm.Shrink({.group = group}, 0.01), 0.01 * 0.01) << group;
  }
}

// The groups are those that ParamTable writes: in a model, exactly what has one row is spared.
TEST(WeightDecay, AgreesWithTheTableOfAModel) {
  for (const ModelConfig& config : RandomShapes()) {
    for (const ParamSpec& spec : ParamTable(config)) {
      EXPECT_EQ(TakesDecay(spec), spec.rows > 1) << spec.name;
    }
  }
}

}  // namespace
}  // namespace toroid
