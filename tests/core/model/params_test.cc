#include "core/model/params.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/io/random_model.h"

namespace toroid {
namespace {

const ParamSpec& Find(const std::vector<ParamSpec>& table, const std::string& name) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const ParamSpec& spec) { return spec.name == name; });
  EXPECT_NE(found, table.end()) << name;
  return *found;
}

TEST(ParamTable, CountsOfKnownModels) {
  EXPECT_EQ(RandomShape("1.1b")->ParameterCount(), 1100048384);  // TinyLlama 1.1B
  EXPECT_EQ(RandomShape("tiny-1m")->ParameterCount(), 3998976);
}

// Parameters without norms and biases, as the papers count.
int64_t Matrices(const ModelConfig& config) {
  int64_t count = 0;
  for (const ParamSpec& spec : ParamTable(config)) {
    if (spec.alias.empty() && spec.rows > 1) count += spec.rows * spec.cols;
  }
  return count;
}

// N = L (2 D H K + 2 D K + 12 D^2) + V D, the published 8.63, 62.50 and 540.35 billion.
TEST(ParamTable, PalmToTheDigit) {
  EXPECT_EQ(Matrices(*RandomShape("palm-8b")), 8631877632);
  EXPECT_EQ(Matrices(*RandomShape("palm-62b")), 62495129600);
  EXPECT_EQ(Matrices(*RandomShape("palm-540b")), 540354281472);
  for (const char* name : {"palm-tiny", "palm-8b", "palm-62b", "palm-540b"}) {
    const ModelConfig c = *RandomShape(name);
    EXPECT_EQ(Matrices(c), c.layers * (2 * c.dim * c.query_heads * c.head_dim +
                                       2 * c.dim * c.head_dim + 12 * c.dim * c.dim) +
                               c.vocab * c.dim);
    EXPECT_EQ(c.ParameterCount(), Matrices(c) + (c.layers + 1) * c.dim);  // one gain to a layer
    EXPECT_NEAR(c.logit_scale, 1 / std::sqrt(double(c.dim)), 1e-15);
  }
}

// 12 L D^2 + (V + context) D where H K = D; the printed heads of two sizes make another width.
TEST(ParamTable, TheEightSizesOfGpt3) {
  struct Size {
    const char* name;
    double billions;  // by 12 L D^2 + (V + context) D
    int64_t odd;      // H K - D
  };
  const Size sizes[] = {{"gpt3-125m", 0.125, 0},  {"gpt3-350m", 0.356, 0},
                        {"gpt3-760m", 0.760, 0},  {"gpt3-1.3b", 1.315, 1024},
                        {"gpt3-2.7b", 2.65, 0},   {"gpt3-6.7b", 6.66, 0},
                        {"gpt3-13b", 12.95, -20}, {"gpt3-175b", 174.6, 0}};
  for (const Size& size : sizes) {
    const ModelConfig c = *RandomShape(size.name);
    const int64_t L = c.layers, D = c.dim, H = c.query_heads * c.head_dim;
    const int64_t even = 12 * L * D * D + (c.vocab + c.context) * D;
    EXPECT_NEAR(double(even) / 1e9 / size.billions, 1, 4e-3) << size.name;
    EXPECT_EQ(H - D, size.odd);
    EXPECT_EQ(Matrices(c), even + 4 * L * D * (H - D)) << size.name;
    // Biases of q, k, v, o, up and down, two norms of a layer and the last one.
    EXPECT_EQ(c.ParameterCount(), Matrices(c) + L * (3 * H + D + 4 * D + D + 4 * D) + 2 * D);
    EXPECT_EQ(c.window(0), 0);
    EXPECT_GT(c.window(1), 0);
    EXPECT_EQ(c.window(1), c.window(L - 1));
  }
}

TEST(ParamTable, CountsOfPublishedCheckpoints) {
  EXPECT_EQ(RandomShape("gpt2-124m")->ParameterCount(), 124439808);
  EXPECT_EQ(RandomShape("llama3-8b")->ParameterCount(), 8030261248);
  EXPECT_EQ(RandomShape("llama-1.2b")->ParameterCount(), 1235814400);
}

TEST(ParamTable, ABlockHasTheParametersOfItsKind) {
  const auto has = [](const ModelConfig& config, const std::string& name) {
    const std::vector<ParamSpec> table = ParamTable(config);
    return std::any_of(table.begin(), table.end(),
                       [&](const ParamSpec& spec) { return spec.name == name; });
  };
  const ModelConfig llama = *RandomShape("tiny-mha"), palm = *RandomShape("palm-tiny"),
                    gpt = *RandomShape("gpt3-tiny");
  const std::string layer = "model.layers.1.";
  for (const ModelConfig& config : {llama, palm, gpt}) {
    const bool is_palm = config.architecture == "palm", is_gpt = config.architecture == "gpt";
    EXPECT_EQ(has(config, layer + "post_attention_layernorm.weight"), !is_palm);
    EXPECT_EQ(has(config, layer + "mlp.gate_proj.weight"), !is_gpt);
    EXPECT_EQ(has(config, "model.embed_positions.weight"), is_gpt);
    EXPECT_EQ(has(config, layer + "input_layernorm.bias"), is_gpt);
    EXPECT_EQ(has(config, "model.norm.bias"), is_gpt);
    EXPECT_EQ(has(config, layer + "mlp.down_proj.bias"), is_gpt);
  }
}

TEST(ParamTable, OptionalPartsAreThereOnlyWhereAsked) {
  ModelConfig config = *RandomShape("tiny-mha");
  const size_t plain = ParamTable(config).size();
  config.qkv_bias = true;
  EXPECT_EQ(ParamTable(config).size(), plain + 3 * 2);
  config.output_bias = true;
  EXPECT_EQ(ParamTable(config).size(), plain + 4 * 2);
  config.mlp_bias = true;
  EXPECT_EQ(ParamTable(config).size(), plain + 7 * 2);
  config.qk_norm = true;
  EXPECT_EQ(ParamTable(config).size(), plain + 9 * 2);
  EXPECT_EQ(Find(ParamTable(config), "lm_head.weight").alias, "");
  config.tied_embeddings = true;
  EXPECT_EQ(Find(ParamTable(config), "lm_head.weight").alias, "model.embed_tokens.weight");
  // A bias behind a sum over `tensor` is added once, after it, so it is not split.
  EXPECT_EQ(Find(ParamTable(config), "model.layers.0.mlp.down_proj.bias").split,
            Split::kReplicated);
  EXPECT_EQ(Find(ParamTable(config), "model.layers.0.mlp.up_proj.bias").split, Split::kFfnRows);
}

// Every element of every parameter is stored by some rank, and by one alone unless it belongs to a
// KV head or is replicated.
TEST(ParamLayout, RanksCoverEveryParameter) {
  for (const char* name :
       {"tiny-gqa", "tiny-mqa", "tiny-qwen2", "tiny-qwen3", "palm-tiny", "gpt3-tiny"}) {
    ModelConfig config = *RandomShape(name);
    config.mlp_bias = config.output_bias = true;
    for (int64_t size = 1; size <= config.query_heads; ++size) {
      for (const ParamSpec& spec : ParamTable(config)) {
        std::vector<int> holders(spec.rows * spec.cols, 0);
        for (int64_t rank = 0; rank < size; ++rank) {
          const ParamSlice slice = ParamLayout(config, rank, size).Slice(spec);
          for (int64_t r = 0; r < slice.row_count; ++r) {
            for (int64_t c = 0; c < slice.col_count; ++c) {
              ++holders[(slice.row_begin + r) * spec.cols + slice.col_begin + c];
            }
          }
        }
        const auto [least, most] = std::minmax_element(holders.begin(), holders.end());
        EXPECT_GE(*least, 1) << spec.name << " on " << size;
        if (spec.split == Split::kReplicated) {
          EXPECT_EQ(*least, size) << spec.name;
        } else if (spec.split != Split::kKvHeads) {
          EXPECT_EQ(*most, 1) << spec.name << " on " << size;
        }
      }
    }
  }
}

TEST(ParamLayout, ColumnsAreCutAtGranules) {
  const ModelConfig config = *RandomShape("tiny-gqa");  // F 160: 5 granules of 32
  int64_t total = 0;
  for (int64_t rank = 0; rank < 9; ++rank) {
    const Range ffn = ParamLayout(config, rank, 9).ffn();
    EXPECT_EQ(ffn.begin % 32, 0);
    EXPECT_EQ(ffn.size() % 32, 0);
    total += ffn.size();
  }
  EXPECT_EQ(total, 160);
  ModelConfig odd = config;
  odd.ffn = 161;  // negative control: no granule divides it
  EXPECT_EQ(ParamLayout(odd, 0, 2).ffn().size(), 80);
}

TEST(ParamLayout, VocabularyIsPaddedNotStored) {
  ModelConfig config = *RandomShape("tiny-gqa");
  config.vocab = 10;
  const ParamLayout second(config, 1, 4), last(config, 3, 4);
  EXPECT_EQ(second.vocab_padded(), 3);
  EXPECT_EQ(second.vocab(), (Range{3, 6}));
  EXPECT_EQ(last.vocab(), (Range{9, 10}));
  config.vocab = 9;  // 3 + 3 + 3: the fourth rank has none
  EXPECT_EQ(ParamLayout(config, 3, 4).vocab().size(), 0);
}

}  // namespace
}  // namespace toroid
