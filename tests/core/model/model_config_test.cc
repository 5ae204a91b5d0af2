#include "core/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/io/random_model.h"

namespace toroid {
namespace {

TEST(ModelConfig, BuiltInShapesAreValid) {
  for (const ModelConfig& shape : RandomShapes()) EXPECT_TRUE(shape.Validate().ok()) << shape.name;
}

TEST(ModelConfig, EveryRuleIsNamed) {
  struct Case {
    std::function<void(ModelConfig&)> spoil;
    const char* message;
  };
  using Kind = RopeScaling::Kind;
  const Case cases[] = {
      {[](auto& c) { c.layers = 0; }, "layers = 0: must be between 1"},
      {[](auto& c) { c.layers = 1 << 20; }, "layers = 1048576"},
      {[](auto& c) { c.dim = -1; }, "hidden size = -1"},
      {[](auto& c) { c.ffn = 0; }, "feed-forward size = 0"},
      {[](auto& c) { c.query_heads = 0; }, "query heads = 0"},
      {[](auto& c) { c.kv_heads = 5; }, "KV heads = 5: must be between 1 and 4"},
      {[](auto& c) { c.kv_heads = 3; }, "must be a multiple of the KV heads, 3"},
      {[](auto& c) { c.head_dim = 15; }, "head dimension = 15: must be even"},
      {[](auto& c) { c.vocab = int64_t{1} << 40; }, "vocabulary size"},
      {[](auto& c) { c.context = 0; }, "context = 0"},
      {[](auto& c) { c.norm_epsilon = 0; }, "rms_norm_eps = 0"},
      {[](auto& c) { c.norm_epsilon = std::nan(""); }, "rms_norm_eps"},
      {[](auto& c) { c.rope_base = 0; }, "rope_theta = 0"},
      {[](auto& c) { c.logit_scale = 0; }, "logit scale = 0"},
      {[](auto& c) { c.logit_scale = std::nan(""); }, "logit scale"},
      {[](auto& c) {
         c.positions = PositionKind::kLearned;
         c.context = int64_t{1} << 30;
       },
       "with learned positions"},
      {[](auto& c) { c.windows = {1}; }, "number of sliding windows = 1"},
      {[](auto& c) {
         c.windows = {0, -4};
       },
       "sliding_window = -4"},
      {[](auto& c) { c.rope = {.kind = Kind::kLinear, .factor = 0.5}; }, "factor = 0.5"},
      {[](auto& c) { c.rope = {.kind = Kind::kYarn, .factor = 2}; }, "original_max_position"},
      {[](auto& c) {
         c.rope = {.kind = Kind::kLlama3,
                   .factor = 2,
                   .original_context = 64,
                   .low_freq_factor = 4,
                   .high_freq_factor = 4};
       },
       "high_freq_factor = 4: must be above low_freq_factor"},
      {[](auto& c) {
         c.rope = {.kind = Kind::kYarn, .factor = 2, .original_context = 64, .beta_fast = 0.5};
       },
       "beta_fast = 0.5"},
      {[](auto& c) { c.rope.kind = Kind::kDivisors; }, "number of rope frequency divisors = 0"},
      {[](auto& c) {
         c.head_dim = 2;
         c.rope = {.kind = Kind::kDynamic, .factor = 2, .original_context = 64};
       },
       "above 2 with dynamic"},
  };
  for (const Case& test : cases) {
    ModelConfig config = *RandomShape("tiny-mha");
    test.spoil(config);
    EXPECT_THAT(std::string(config.Validate().message()), testing::HasSubstr(test.message));
  }
}

}  // namespace
}  // namespace toroid
