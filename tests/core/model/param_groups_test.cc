#include "core/model/param_groups.h"

#include <gtest/gtest.h>

#include <map>

#include "core/io/random_model.h"
#include "core/model/owed_sums.h"

namespace toroid {
namespace {

ModelConfig Awkward(const char* name, bool tied) {
  ModelConfig config = *RandomShape(name);
  config.mlp_bias = config.output_bias = true;
  config.tied_embeddings = tied;
  return config;
}

// Calls visit(parameter, element of the whole parameter, counted) for each element that a rank of
// tensor x shard stores.
template <typename Visit>
void ForEachStored(const ModelConfig& config, int64_t tensor_rank, int64_t tensor,
                   int64_t shard_rank, int64_t shard, const Visit& visit) {
  const ParamGroups groups(config, ParamLayout(config, tensor_rank, tensor), tensor_rank, shard,
                           config.layers);
  int64_t stored = 0;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const ParamGroup& group = groups.group(g);
    const Range range = groups.Stored(g, shard_rank);
    EXPECT_EQ(range.size() % 64, 0);
    EXPECT_EQ(groups.StoredBegin(g), stored);
    stored += range.size();
    for (const ParamPiece& piece : PiecesOf(group, range)) {
      const GroupMember& member = group.members[piece.member];
      EXPECT_EQ(range.begin + piece.offset, member.offset + piece.begin);
      for (int64_t i = piece.begin; i < piece.begin + piece.count; ++i) {
        const int64_t row = member.slice.row_begin + i / member.slice.col_count;
        const int64_t col = member.slice.col_begin + i % member.slice.col_count;
        visit(member.spec, row * member.spec.cols + col, i >= member.counted_from);
      }
    }
  }
  EXPECT_EQ(groups.stored_size(), stored);
}

// Every element of every parameter is counted on one rank of any mesh, and stored there.
TEST(ParamGroups, EveryElementIsCountedOnce) {
  for (const char* name : {"tiny-gqa", "tiny-mqa", "tiny-qwen2", "tiny-qwen3"}) {
    for (bool tied : {false, true}) {
      const ModelConfig config = Awkward(name, tied);
      for (int64_t tensor = 1; tensor <= config.query_heads; ++tensor) {
        for (int64_t shard : {1, 3}) {
          std::map<std::string, std::vector<int>> counted;
          for (const ParamSpec& spec : ParamTable(config)) {
            if (spec.alias.empty()) counted[spec.name].resize(spec.rows * spec.cols);
          }
          for (int64_t t = 0; t < tensor; ++t) {
            for (int64_t s = 0; s < shard; ++s) {
              ForEachStored(config, t, tensor, s, shard,
                            [&](const ParamSpec& spec, int64_t element, bool is_counted) {
                              counted.at(spec.name)[element] += is_counted;
                            });
            }
          }
          for (const auto& [parameter, times] : counted) {
            EXPECT_EQ(std::count(times.begin(), times.end(), 1), int64_t(times.size()))
                << name << " tensor " << tensor << " shard " << shard << " " << parameter;
          }
        }
      }
    }
  }
}

// The control of the test above: were replicas counted too, gains would be counted on every rank.
TEST(ParamGroups, ReplicasAreStoredOnEveryTensorRank) {
  const ModelConfig config = Awkward("tiny-mqa", true);
  int64_t stored = 0, counted = 0, shared = 0;
  for (int64_t t = 0; t < 2; ++t) {
    ForEachStored(config, t, 2, 0, 1, [&](const ParamSpec&, int64_t, bool is_counted) {
      ++stored;
      counted += is_counted;
    });
    const ParamGroups groups(config, ParamLayout(config, t, 2), t, 1, config.layers);
    std::vector<ParamSpec> layer;
    for (const GroupMember& member : groups.group(groups.layer(0)).members) {
      layer.push_back(member.spec);
    }
    shared += OwedElements(config, layer, 2);
    EXPECT_EQ(groups.head(), groups.embedding());  // tied: one gather serves norm and head
  }
  EXPECT_EQ(counted, config.ParameterCount());
  EXPECT_GT(stored, counted);
  // Norms, biases behind a sum, and the one KV head with its biases if it has any.
  const int64_t kv = 2 * config.head_dim * (config.dim + (config.qkv_bias ? 1 : 0));
  EXPECT_EQ(shared, 2 * (4 * config.dim + kv));
}

TEST(ParamGroups, AHeadOfItsOwnIsAGroupOfItsOwn) {
  const ModelConfig config = Awkward("tiny-gqa", false);
  const ParamGroups groups(config, ParamLayout(config, 0, 1), 0, 2, config.layers);
  EXPECT_EQ(groups.count(), config.layers + 2);
  const ParamGroup& head = groups.group(groups.head());
  EXPECT_EQ(head.name, "final");
  ASSERT_NE(head.Find("lm_head.weight"), nullptr);
  EXPECT_EQ(groups.group(groups.embedding()).Find("model.norm.weight"), nullptr);
  EXPECT_EQ(head.size % 128, 0);
}

TEST(ParamGroups, PiecesSkipPads) {
  ParamGroup group;
  group.size = 256;
  group.members.resize(2);
  group.members[0].slice = {0, 1, 0, 70};
  group.members[1].slice = {0, 2, 0, 20};
  group.members[1].offset = 128;
  const std::vector<ParamPiece> pieces = PiecesOf(group, {64, 192});
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].begin, 64);
  EXPECT_EQ(pieces[0].count, 6);
  EXPECT_EQ(pieces[0].offset, 0);
  EXPECT_EQ(pieces[1].begin, 0);
  EXPECT_EQ(pieces[1].count, 40);
  EXPECT_EQ(pieces[1].offset, 64);
  EXPECT_TRUE(PiecesOf(group, {192, 256}).empty());
}

}  // namespace
}  // namespace toroid
