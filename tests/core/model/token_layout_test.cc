#include "core/model/token_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr LayoutRule kContiguous{LayoutRule::Kind::kContiguous};
constexpr LayoutRule kZigzag{LayoutRule::Kind::kZigzag};
constexpr LayoutRule Striped(int64_t n) { return {LayoutRule::Kind::kStriped, n}; }

const std::vector<LayoutRule> kRules = {kContiguous, kZigzag, Striped(1), Striped(3), Striped(16)};
const std::vector<std::vector<int64_t>> kLengths = {
    {}, {0}, {1}, {2}, {7}, {16}, {257}, {3, 0, 5}, {64, 17}, {1, 40, 9, 0, 33}};

// What a rank says that it holds: LocalIndex must be the inverse of Positions and Sequences, and
// runs, Share, count and RingOwner must tell the same. Returns the first contradiction.
std::string Contradiction(const TokenLayout& layout, const TokenLayout& owners) {
  for (int64_t d = 0; d < layout.data(); ++d) {
    int64_t most = 0;
    for (int64_t r = 0; r < layout.ring(); ++r) {
      const auto positions = layout.Positions(d, r), sequences = layout.Sequences(d, r);
      most = std::max(most, layout.count(d, r));
      if (int64_t(positions.size()) != layout.count(d, r)) return "count of positions";
      if (int64_t(sequences.size()) != layout.count(d, r)) return "count of sequences";
      for (size_t i = 0; i < positions.size(); ++i) {
        const int64_t q = sequences[i], p = positions[i];
        if (q % layout.data() != d) return "sequence on a wrong data rank";
        if (i > 0 && sequences[i - 1] > q) return "sequences do not ascend";
        if (i > 0 && sequences[i - 1] == q && positions[i - 1] >= p)
          return "positions do not ascend";
        if (owners.RingOwner(q, p) != r) return "owner";
        if (layout.LocalIndex(d, r, q, p) != int64_t(i)) return "local index";
        const SequenceShare share = layout.Share(r, q);
        if (int64_t(i) < share.begin || int64_t(i) >= share.begin + share.count) return "share";
      }
      const auto& runs = layout.runs(d, r);
      size_t row = 0;
      for (size_t i = 0; i < runs.size(); ++i) {
        if (runs[i].count < 1) return "empty run";
        if (i > 0 && runs[i - 1].sequence == runs[i].sequence &&
            runs[i - 1].first + runs[i - 1].count >= runs[i].first) {
          return "run not maximal";
        }
        for (int64_t j = 0; j < runs[i].count; ++j, ++row) {
          if (positions[row] != runs[i].first + j || sequences[row] != runs[i].sequence)
            return "run";
        }
      }
      if (row != positions.size()) return "runs";
    }
    if (most != layout.max_count(d)) return "max_count";
  }
  return "";
}

TEST(TokenLayout, EveryPositionHasOneOwner) {
  for (const LayoutRule& rule : kRules) {
    for (const auto& lengths : kLengths) {
      for (int64_t ring = 1; ring <= 9; ++ring) {
        for (int64_t data = 1; data <= 3; ++data) {
          SCOPED_TRACE(ToString(rule) + " ring " + std::to_string(ring) + " data " +
                       std::to_string(data) + " lengths " + ::testing::PrintToString(lengths));
          const TokenLayout layout(rule, lengths, data, ring);
          ASSERT_EQ(Contradiction(layout, layout), "");
          for (int64_t q = 0; q < int64_t(lengths.size()); ++q) {
            for (int64_t p = -1; p <= lengths[q]; ++p) {
              int64_t holders = 0;
              for (int64_t d = 0; d < data; ++d) {
                for (int64_t r = 0; r < ring; ++r) holders += layout.LocalIndex(d, r, q, p) >= 0;
              }
              ASSERT_EQ(holders, p >= 0 && p < lengths[q] ? 1 : 0) << "position " << p;
            }
          }
        }
      }
    }
  }
}

TEST(TokenLayout, OwnersOfAnotherLayoutContradict) {
  const TokenLayout layout(kZigzag, {64}, 1, 4);
  EXPECT_EQ(Contradiction(layout, TokenLayout(kContiguous, {64}, 1, 4)), "owner");
  EXPECT_EQ(Contradiction(layout, TokenLayout(kZigzag, {70}, 1, 4)), "owner");
}

TEST(TokenLayout, SharesAreNearlyEqual) {
  for (int64_t length = 0; length < 200; ++length) {
    for (int64_t ring = 1; ring <= 9; ++ring) {
      const auto spread = [&](LayoutRule rule) {
        const TokenLayout layout(rule, {length}, 1, ring);
        int64_t least = length;
        for (int64_t r = 0; r < ring; ++r) least = std::min(least, layout.count(0, r));
        return layout.max_count(0) - least;
      };
      EXPECT_LE(spread(kContiguous), 1);
      EXPECT_LE(spread(kZigzag), 2);
      EXPECT_LE(spread(Striped(1)), 1);
      EXPECT_LE(spread(Striped(16)), 16);
    }
  }
}

TEST(TokenLayout, Examples) {
  const TokenLayout contiguous(kContiguous, {10}, 1, 4);
  EXPECT_THAT(contiguous.Positions(0, 1), ElementsAre(2, 3, 4));
  const TokenLayout zigzag(kZigzag, {16}, 1, 4);
  EXPECT_THAT(zigzag.runs(0, 0), ElementsAre(toroid::Run{0, 0, 2}, toroid::Run{0, 14, 2}));
  EXPECT_THAT(zigzag.runs(0, 3), ElementsAre(toroid::Run{0, 6, 4}));
  const TokenLayout striped(Striped(2), {7}, 1, 2);
  EXPECT_THAT(striped.runs(0, 0), ElementsAre(toroid::Run{0, 0, 2}, toroid::Run{0, 4, 2}));
  EXPECT_THAT(striped.runs(0, 1), ElementsAre(toroid::Run{0, 2, 2}, toroid::Run{0, 6, 1}));
  // Sequences 1 and 3 on the second data rank, in order.
  const TokenLayout two(Striped(2), {7, 3, 1, 2}, 2, 2);
  EXPECT_THAT(two.runs(1, 0), ElementsAre(toroid::Run{1, 0, 2}, toroid::Run{3, 0, 2}));
  EXPECT_THAT(two.Sequences(1, 0), ElementsAre(1, 1, 3, 3));
  EXPECT_THAT(two.Positions(1, 1), ElementsAre(2));
  EXPECT_EQ(two.Share(0, 3).begin, 2);
  EXPECT_EQ(two.Share(1, 3).begin, 1);
  EXPECT_EQ(two.Share(1, 3).count, 0);
}

TEST(TokenLayout, ShorterThanTheRing) {
  for (const LayoutRule& rule : kRules) {
    const TokenLayout layout(rule, {1}, 1, 8);
    int64_t holders = 0;
    for (int64_t r = 0; r < 8; ++r) holders += layout.count(0, r);
    EXPECT_EQ(holders, 1);
    EXPECT_EQ(layout.max_count(0), 1);
  }
  EXPECT_THAT(TokenLayout(kZigzag, {0}, 1, 3).runs(0, 0), IsEmpty());
}

// What was placed stays where it is as the text grows: true of stripes alone.
TEST(TokenLayout, StripesNeverMove) {
  const auto moves = [](LayoutRule rule) {
    const TokenLayout before(rule, {100}, 1, 3), after(rule, {101}, 1, 3);
    for (int64_t p = 0; p < 100; ++p) {
      if (before.RingOwner(0, p) != after.RingOwner(0, p)) return true;
      const int64_t owner = before.RingOwner(0, p);
      if (before.LocalIndex(0, owner, 0, p) != after.LocalIndex(0, owner, 0, p)) return true;
    }
    return false;
  };
  EXPECT_FALSE(moves(Striped(1)));
  EXPECT_FALSE(moves(Striped(16)));
  EXPECT_TRUE(moves(kContiguous));
  EXPECT_TRUE(moves(kZigzag));
  const TokenLayout layout(Striped(16), {1000}, 1, 5);
  for (int64_t p = 0; p < 1000; ++p) {
    EXPECT_EQ(layout.RingOwner(0, p), TokenLayout::StripedOwner(16, 5, p));
  }
}

TEST(LayoutRule, ParsesWhatItPrints) {
  for (const LayoutRule& rule : kRules) {
    const auto parsed = ParseLayoutRule(ToString(rule));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, rule);
  }
  EXPECT_EQ(*ParseLayoutRule("striped"), Striped(16));
  EXPECT_EQ(*ParseLayoutRule("striped:64"), Striped(64));
}

TEST(LayoutRule, RefusesByName) {
  for (const char* text : {"", "zigzag:2", "stripe", "striped:", "striped:0", "striped:-3",
                           "striped:1048577", "striped:16x", "striped:99999999999999999999"}) {
    const auto parsed = ParseLayoutRule(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(parsed.status().message().data(), parsed.status().message().size());
    EXPECT_THAT(message, HasSubstr(std::string("'") + text + "'"));
    EXPECT_THAT(message, HasSubstr("contiguous, zigzag, striped, striped:N"));
  }
}

TEST(AttentionSpec, RefusesWhatItCannotHonour) {
  EXPECT_TRUE(AttentionSpec{}.Validate().ok());
  EXPECT_TRUE((AttentionSpec{.causal = false, .window = 5, .scale = 0.125}).Validate().ok());
  EXPECT_EQ((AttentionSpec{.window = -1}).Validate().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((AttentionSpec{.scale = 0}).Validate().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((AttentionSpec{.soft_cap = 30}).Validate().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ((AttentionSpec{.sinks = 4}).Validate().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace toroid
