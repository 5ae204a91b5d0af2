#include "core/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/io/hugging_face_config.h"
#include "tests/support/source_path.h"

namespace toroid {
namespace {

nlohmann::json Cases() {
  std::ifstream in(SourcePath("tests/golden/rope.json"));
  return nlohmann::json::parse(in);
}

// transformers computes in float32, and pow is its coarsest step: a few units in the last place.
constexpr double kTolerance = 1e-6;

TEST(Rope, EqualsTransformers) {
  for (const auto& test : Cases()) {
    const std::string name = test["name"];
    const auto config = HuggingFaceConfig(test["config"].dump(), name);
    ASSERT_TRUE(config.ok()) << config.status();
    const RopeFrequencies rope = Rope(*config, test["length"]);
    const auto expected = test["inv_freq"].get<std::vector<double>>();
    ASSERT_EQ(rope.inv_freq.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(rope.inv_freq[i] / expected[i], 1.0, kTolerance) << name << " pair " << i;
    }
    EXPECT_NEAR(rope.attention_scale, test["attention_scale"].get<double>(), 1e-12) << name;
  }
}

// Negative control: each scaling moves some frequency by far more than the tolerance above.
TEST(Rope, EachScalingShows) {
  for (const auto& test : Cases()) {
    const auto config = HuggingFaceConfig(test["config"].dump(), "test");
    ASSERT_TRUE(config.ok());
    ModelConfig plain = *config;
    plain.rope = {};
    const RopeFrequencies with = Rope(*config, test["length"]), without = Rope(plain, 1);
    double largest = std::abs(with.attention_scale - without.attention_scale);
    for (size_t i = 0; i < with.inv_freq.size(); ++i) {
      largest = std::max(largest, std::abs(with.inv_freq[i] / without.inv_freq[i] - 1));
    }
    const std::string name = test["name"];
    const bool changes = name != "default" && name != "base_500000" && name != "yarn_factor_1" &&
                         name != "dynamic_within" && name != "dynamic_at_context";
    EXPECT_EQ(largest > 1e-2, changes) << name << " " << largest;
  }
}

// The base of a dynamic scaling is one for the whole request: it depends on the bound alone, and
// does not move below the trained context.
TEST(Rope, DynamicBaseFollowsTheBound) {
  ModelConfig config;
  config.head_dim = 64;
  config.rope.kind = RopeScaling::Kind::kDynamic;
  config.rope.factor = 2;
  config.rope.original_context = 100;
  EXPECT_EQ(Rope(config, 1).inv_freq, Rope(config, 100).inv_freq);
  EXPECT_NE(Rope(config, 100).inv_freq, Rope(config, 101).inv_freq);
  config.context = 200;
  EXPECT_GT(RopeReach(config), int64_t{1} << 40);
  config.rope.kind = RopeScaling::Kind::kLinear;
  EXPECT_EQ(RopeReach(config), 200);
}

TEST(Rope, DivisorsOfAGgufFile) {
  ModelConfig config;
  config.head_dim = 4;
  config.rope.kind = RopeScaling::Kind::kDivisors;
  config.rope.divisors = {1, 8};
  EXPECT_EQ(Rope(config, 1).inv_freq, (std::vector<double>{1.0, 0.01 / 8}));
}

}  // namespace
}  // namespace toroid
