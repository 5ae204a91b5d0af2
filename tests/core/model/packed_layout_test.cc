// Packs: documents that lie one after the other in one sequence of the ring. The truth is told by
// brute force from the rule's words in token_layout.h, token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/model/token_layout.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using Packs = std::vector<std::vector<int64_t>>;

constexpr LayoutRule kContiguous{LayoutRule::Kind::kContiguous};
constexpr LayoutRule kZigzag{LayoutRule::Kind::kZigzag};
constexpr LayoutRule Striped(int64_t n) { return {LayoutRule::Kind::kStriped, n}; }
const std::vector<LayoutRule> kRules = {kContiguous, kZigzag, Striped(1), Striped(3)};

struct Token {
  int64_t document, position;
  bool operator==(const Token&) const = default;
};

int64_t NaiveOwner(const LayoutRule& rule, int64_t ring, int64_t length, int64_t token) {
  if (rule.kind == LayoutRule::Kind::kStriped) return token / rule.stripe % ring;
  const int64_t parts = rule.kind == LayoutRule::Kind::kZigzag ? 2 * ring : ring;
  for (int64_t part = 0; part < parts; ++part) {
    if (part * length / parts <= token && token < (part + 1) * length / parts) {
      return part < ring ? part : parts - 1 - part;
    }
  }
  return -1;
}

// Tokens of a rank in local order.
std::vector<Token> NaiveTokens(const LayoutRule& rule, const Packs& packs, int64_t data,
                               int64_t ring, int64_t data_rank, int64_t ring_rank) {
  std::vector<Token> tokens;
  int64_t document = 0;
  for (size_t p = 0; p < packs.size(); ++p) {
    int64_t length = 0, token = 0;
    for (int64_t n : packs[p]) length += n;
    for (int64_t n : packs[p]) {
      for (int64_t i = 0; i < n; ++i, ++token) {
        if (int64_t(p) % data != data_rank) continue;
        if (NaiveOwner(rule, ring, length, token) == ring_rank) tokens.push_back({document, i});
      }
      ++document;
    }
  }
  return tokens;
}

bool Allowed(const AttentionSpec& spec, const Token& q, const Token& k) {
  return q.document == k.document && (!spec.causal || k.position <= q.position) &&
         (spec.window == 0 || k.position > q.position - spec.window);
}

std::vector<Token> LayoutTokens(const TokenLayout& layout, int64_t data_rank, int64_t ring_rank) {
  const auto positions = layout.Positions(data_rank, ring_rank);
  const auto documents = layout.Sequences(data_rank, ring_rank);
  std::vector<Token> tokens;
  for (size_t i = 0; i < positions.size(); ++i) tokens.push_back({documents[i], positions[i]});
  return tokens;
}

// What is wrong with the layout's own words for these packs, or "".
std::string LayoutError(const TokenLayout& layout, const LayoutRule& rule, const Packs& packs) {
  for (int64_t d = 0; d < layout.data(); ++d) {
    for (int64_t r = 0; r < layout.ring(); ++r) {
      const auto truth = NaiveTokens(rule, packs, layout.data(), layout.ring(), d, r);
      if (LayoutTokens(layout, d, r) != truth) return "tokens";
      if (layout.count(d, r) != int64_t(truth.size())) return "count";
      for (size_t i = 0; i < truth.size(); ++i) {
        const auto [document, position] = truth[i];
        if (layout.RingOwner(document, position) != r) return "owner";
        if (layout.LocalIndex(d, r, document, position) != int64_t(i)) return "local index";
        const SequenceShare share = layout.Share(r, document);
        if (int64_t(i) < share.begin || int64_t(i) >= share.begin + share.count) return "share";
      }
    }
  }
  int64_t document = 0;
  for (size_t p = 0; p < packs.size(); ++p) {
    int64_t begin = 0;
    for (int64_t n : packs[p]) {
      if (layout.place(document) != SequencePlace{int64_t(p), begin}) return "place";
      if (layout.lengths()[document++] != n) return "length";
      begin += n;
    }
  }
  return "";
}

// Counts the pairs of every rank and round by brute force. Returns what is wrong, or "".
std::string PairError(const TokenLayout& layout, const LayoutRule& rule, const Packs& packs,
                      const AttentionSpec& spec) {
  const int64_t R = layout.ring();
  for (int64_t d = 0; d < layout.data(); ++d) {
    for (int64_t r = 0; r < R; ++r) {
      const auto q = NaiveTokens(rule, packs, layout.data(), R, d, r);
      std::vector<bool> kept(R, false);
      for (const Round& round : Rounds(layout, spec, d, r)) {
        kept[round.kv_of] = true;
        const auto k = NaiveTokens(rule, packs, layout.data(), R, d, round.kv_of);
        int64_t pairs = 0;
        for (const Token& query : q) {
          for (const Token& key : k) pairs += Allowed(spec, query, key);
        }
        if (pairs != round.pairs) return "pairs";
        std::set<std::pair<int64_t, int64_t>> seen;
        for (const Tile& tile : round.tiles) {
          for (int64_t i = tile.q_begin; i < tile.q_begin + tile.q_count; ++i) {
            for (int64_t j = tile.k_begin; j < tile.k_begin + tile.k_count; ++j) {
              // The kernel masks by positions alone: a tile across documents would let them see.
              if (q[i].document != k[j].document) return "tile across documents";
              if (Allowed(spec, q[i], k[j]) && !seen.insert({i, j}).second) return "pair twice";
            }
          }
        }
        if (int64_t(seen.size()) != pairs) return "pair missing";
      }
      for (int64_t of = 0; of < R; ++of) {
        if (kept[of]) continue;
        for (const Token& query : q) {
          for (const Token& key : NaiveTokens(rule, packs, layout.data(), R, d, of)) {
            if (Allowed(spec, query, key)) return "round left out";
          }
        }
      }
    }
  }
  return "";
}

std::vector<Packs> RandomPacks() {
  std::mt19937 random(7);
  const int64_t lengths[] = {0, 1, 1, 2, 3, 5, 8, 14};
  std::vector<Packs> all = {{}, {{}}, {{}, {}, {4}}, {{1}}, {{1, 1, 1}}, {{0, 3, 0, 0, 2, 0}}};
  for (int i = 0; i < 12; ++i) {
    Packs packs(1 + random() % 3);
    for (auto& pack : packs) {
      pack.resize(random() % 6);
      for (auto& length : pack) length = lengths[random() % 8];
    }
    all.push_back(packs);
  }
  return all;
}

TEST(PackedLayout, TokensAndPairsAreThoseOfBruteForce) {
  for (const Packs& packs : RandomPacks()) {
    for (const LayoutRule& rule : kRules) {
      for (int64_t ring = 1; ring <= 5; ++ring) {
        for (int64_t data = 1; data <= 2; ++data) {
          SCOPED_TRACE(ToString(rule) + " ring " + std::to_string(ring) + " data " +
                       std::to_string(data) + " packs " + ::testing::PrintToString(packs));
          const TokenLayout layout = TokenLayout::Packed(rule, packs, data, ring);
          ASSERT_EQ(LayoutError(layout, rule, packs), "");
          for (const int64_t window : {0, 1, 4}) {
            ASSERT_EQ(PairError(layout, rule, packs, {.window = window}), "");
          }
          ASSERT_EQ(PairError(layout, rule, packs, {.causal = false}), "");
        }
      }
    }
  }
}

// A boundary lost, moved by one, or a document on a wrong rank: each is seen.
TEST(PackedLayout, BrokenPacksAreCaught) {
  const Packs packs = {{5, 9, 1}, {6}};
  const auto error = [&](const Packs& other, int64_t data) {
    const TokenLayout layout = TokenLayout::Packed(kZigzag, other, data, 3);
    return LayoutError(layout, kZigzag, packs) + " " + PairError(layout, kZigzag, packs, {});
  };
  EXPECT_EQ(error(packs, 1), " ");
  EXPECT_EQ(error({{14, 1}, {6}}, 1), "tokens pairs");
  EXPECT_EQ(error({{6, 8, 1}, {6}}, 1), "tokens pairs");
  EXPECT_EQ(error({{5, 9}, {1}, {6}}, 1), "tokens pairs");
  EXPECT_EQ(LayoutError(TokenLayout::Packed(kContiguous, packs, 1, 3), kZigzag, packs), "tokens");
}

// Whatever documents a pack holds, a rank's share of it is that of one text of its length.
TEST(PackedLayout, SharesAreThoseOfOneText) {
  for (const Packs& packs : RandomPacks()) {
    for (const LayoutRule& rule : kRules) {
      for (int64_t ring = 1; ring <= 5; ++ring) {
        for (const auto& pack : packs) {
          int64_t length = 0;
          for (int64_t n : pack) length += n;
          const TokenLayout packed = TokenLayout::Packed(rule, {pack}, 1, ring);
          const TokenLayout whole(rule, {length}, 1, ring);
          int64_t least = length;
          for (int64_t r = 0; r < ring; ++r) {
            EXPECT_EQ(packed.count(0, r), whole.count(0, r));
            least = std::min(least, packed.count(0, r));
          }
          const int64_t spread = rule.kind == LayoutRule::Kind::kContiguous ? 1
                                 : rule.kind == LayoutRule::Kind::kZigzag   ? 2
                                                                            : rule.stripe;
          EXPECT_LE(packed.max_count(0) - least, spread);
        }
      }
    }
  }
}

TEST(PackedLayout, OneDocumentInEachIsTheLayoutWithoutPacks) {
  for (const LayoutRule& rule : kRules) {
    for (int64_t ring = 1; ring <= 5; ++ring) {
      const TokenLayout plain(rule, {13, 0, 1, 22}, 2, ring);
      const TokenLayout packed = TokenLayout::Packed(rule, {{13}, {0}, {1}, {22}}, 2, ring);
      for (int64_t d = 0; d < 2; ++d) {
        EXPECT_EQ(plain.sequences(d), packed.sequences(d));
        for (int64_t r = 0; r < ring; ++r) EXPECT_EQ(plain.runs(d, r), packed.runs(d, r));
      }
    }
  }
}

TEST(PackedLayout, Example) {
  // Tokens 0..7 of pack 0 and 0..2 of pack 2 on data rank 0; chunks of two tokens on a ring of 2.
  const TokenLayout layout = TokenLayout::Packed(kZigzag, {{3, 1, 4}, {5}, {2, 1}}, 2, 2);
  EXPECT_THAT(layout.sequences(0), ElementsAre(0, 1, 2, 4, 5));
  EXPECT_THAT(layout.runs(0, 0),
              ElementsAre(toroid::Run{0, 0, 2}, toroid::Run{2, 2, 2}, toroid::Run{5, 0, 1}));
  EXPECT_THAT(layout.runs(0, 1), ElementsAre(toroid::Run{0, 2, 1}, toroid::Run{1, 0, 1},
                                             toroid::Run{2, 0, 2}, toroid::Run{4, 0, 2}));
  EXPECT_THAT(layout.Positions(0, 1), ElementsAre(2, 0, 0, 1, 0, 1));
  EXPECT_EQ(layout.place(2), (SequencePlace{0, 4}));
  EXPECT_EQ(layout.place(5), (SequencePlace{2, 2}));
}

// Documents no longer than a rank's share need no far blocks: the ring stops early.
TEST(PackedLayout, ShortDocumentsStopTheRingEarly) {
  const TokenLayout layout =
      TokenLayout::Packed(kContiguous, {std::vector<int64_t>(16, 8)}, 1, 4);  // 4 in each share
  EXPECT_EQ(Rounds(layout, {}, 0, 2).size(), 1u);
  const TokenLayout across = TokenLayout::Packed(kContiguous, {{40, 88}}, 1, 4);
  EXPECT_EQ(Rounds(across, {}, 0, 2).size(), 3u);  // 88 tokens reach over two shares back
  EXPECT_EQ(Rounds(TokenLayout(kContiguous, {128}, 1, 4), {}, 0, 2).size(), 4u);
}

}  // namespace
}  // namespace toroid
