#include "core/io/describe.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace toroid {
namespace {

std::map<std::string, std::string> Configuration(const std::string& path) {
  const auto source = OpenModel(path);
  EXPECT_TRUE(source.ok()) << source.status();
  const ModelDescription described = Describe(*source);
  return {described.configuration.begin(), described.configuration.end()};
}

TEST(Describe, SaysWhatKindOfModelItIs) {
  auto palm = Configuration("random:palm-540b");
  EXPECT_EQ(palm["norm"], "rms");
  EXPECT_EQ(palm["activation"], "swiglu");
  EXPECT_EQ(palm["block"], "parallel");
  EXPECT_EQ(palm["positions"], "rope");
  EXPECT_EQ(palm["sliding_window"], "none");
  EXPECT_EQ(palm["biases"], "none");
  EXPECT_EQ(palm["tied_embeddings"], "yes");
  EXPECT_EQ(palm["logit_scale"].substr(0, 8), "0.007365");  // 1 / sqrt(18432)
  auto gpt = Configuration("random:gpt3-13b");
  EXPECT_EQ(gpt["norm"], "layer");
  EXPECT_EQ(gpt["activation"], "gelu");
  EXPECT_EQ(gpt["block"], "serial");
  EXPECT_EQ(gpt["positions"], "learned");
  EXPECT_EQ(gpt["rope_base"], "none");
  EXPECT_EQ(gpt["sliding_window"], "0 256, repeated");
  EXPECT_EQ(gpt["biases"], "qkv output mlp norm");
  EXPECT_EQ(gpt["logit_scale"], "1");
  EXPECT_EQ(Configuration("random:tiny-qwen2")["sliding_window"], "0 48");
  EXPECT_EQ(Configuration("random:tiny-mistral")["sliding_window"], "64");
}

TEST(Describe, CountsTensorsOfShapesThatNobodyHolds) {
  const ModelDescription described = Describe(*OpenModel("random:palm-8b"));
  EXPECT_EQ(described.parameters, 8632012800);  // 8631877632 of matrices, 33 gains of 4096
  EXPECT_EQ(described.tensor_bytes, 4 * described.parameters);
  EXPECT_EQ(described.tensors.size(), size_t(1 + 32 * 8 + 1));
}

}  // namespace
}  // namespace toroid
