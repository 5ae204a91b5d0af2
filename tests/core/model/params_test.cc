#include "core/model/params.h"

#include <gtest/gtest.h>

#include <algorithm>

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
  for (const char* name : {"tiny-gqa", "tiny-mqa", "tiny-qwen2", "tiny-qwen3"}) {
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
