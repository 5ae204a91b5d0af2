#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "core/model/token_layout.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;

constexpr LayoutRule kContiguous{LayoutRule::Kind::kContiguous};
constexpr LayoutRule kZigzag{LayoutRule::Kind::kZigzag};
constexpr LayoutRule Striped(int64_t n) { return {LayoutRule::Kind::kStriped, n}; }

constexpr AttentionSpec Causal(int64_t window = 0) { return {.window = window}; }

using Schedules = std::vector<std::vector<Round>>;  // of one data row, by ring rank

Schedules AllRanks(const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank) {
  Schedules all;
  for (int64_t r = 0; r < layout.ring(); ++r) all.push_back(Rounds(layout, spec, data_rank, r));
  return all;
}

std::vector<int64_t> Shifts(const std::vector<Round>& rounds, int64_t rank, int64_t ring) {
  std::vector<int64_t> shifts;
  for (const Round& round : rounds) shifts.push_back((rank + ring - round.kv_of) % ring);
  return shifts;
}

bool Allowed(const AttentionSpec& spec, int64_t query, int64_t key) {
  return (!spec.causal || key <= query) && (spec.window == 0 || key > query - spec.window);
}

// Counts every allowed (sequence, query, key) in the tiles; `truth` is the layout by which tokens
// are really placed. Returns the first thing wrong, or "".
std::string CoverError(const TokenLayout& truth, const AttentionSpec& spec, int64_t data_rank,
                       const Schedules& schedules) {
  std::map<std::tuple<int64_t, int64_t, int64_t>, int> seen;
  for (int64_t r = 0; r < truth.ring(); ++r) {
    const auto q_positions = truth.Positions(data_rank, r);
    const auto q_sequences = truth.Sequences(data_rank, r);
    for (const Round& round : schedules[r]) {
      const auto k_positions = truth.Positions(data_rank, round.kv_of);
      const auto k_sequences = truth.Sequences(data_rank, round.kv_of);
      int64_t pairs = 0;
      for (const Tile& tile : round.tiles) {
        if (tile.q_begin + tile.q_count > int64_t(q_positions.size()) ||
            tile.k_begin + tile.k_count > int64_t(k_positions.size())) {
          return "tile outside the block";
        }
        for (int64_t q = tile.q_begin; q < tile.q_begin + tile.q_count; ++q) {
          for (int64_t k = tile.k_begin; k < tile.k_begin + tile.k_count; ++k) {
            if (q_sequences[q] != k_sequences[k]) return "tile across sequences";
            if (!Allowed(spec, q_positions[q], k_positions[k])) continue;
            ++seen[{q_sequences[q], q_positions[q], k_positions[k]}];
            ++pairs;
          }
        }
      }
      if (pairs != round.pairs) return "pairs";
    }
  }
  size_t allowed = 0;
  for (const int64_t s : truth.sequences(data_rank)) {
    for (int64_t q = 0; q < truth.lengths()[s]; ++q) {
      for (int64_t k = 0; k < truth.lengths()[s]; ++k) {
        if (!Allowed(spec, q, k)) continue;
        ++allowed;
        const auto found = seen.find({s, q, k});
        if (found == seen.end()) return "pair missing";
        if (found->second != 1) return "pair twice";
      }
    }
  }
  return allowed == seen.size() ? "" : "pair too many";
}

// Moves blocks as the schedules say. Returns the first thing wrong, or "".
std::string MovementError(const TokenLayout& layout, int64_t data_rank,
                          const Schedules& schedules) {
  const int64_t ring = layout.ring();
  std::vector<int64_t> holds(ring);  // whose block each rank holds
  for (int64_t r = 0; r < ring; ++r) holds[r] = r;
  for (size_t i = 0; i < schedules[0].size(); ++i) {
    std::vector<int64_t> next(ring, -1);
    for (int64_t r = 0; r < ring; ++r) {
      if (schedules[r].size() != schedules[0].size()) return "lists differ";
      const Round& round = schedules[r][i];
      if (round.kv_of != holds[r]) return "holds another block";
      if (round.moves != (i + 1 < schedules[r].size())) return "moves";
      if (!round.moves) continue;
      const Round& peer = schedules[round.to][i];
      if (round.to == r || !peer.moves || peer.from != r) return "peer does not receive";
      if (peer.recv_tokens != layout.count(data_rank, holds[r])) return "message sizes differ";
      if (next[round.to] >= 0) return "received twice";
      next[round.to] = holds[r];
    }
    if (i + 1 < schedules[0].size()) holds = next;
  }
  return "";
}

const std::vector<LayoutRule> kRules = {kContiguous, kZigzag, Striped(1), Striped(2), Striped(5)};

TEST(Rounds, EveryAllowedPairOnce) {
  const std::vector<std::vector<int64_t>> all_lengths = {{},   {0},  {1},     {3},
                                                         {13}, {24}, {9, 14}, {1, 11, 6}};
  for (const LayoutRule& rule : kRules) {
    for (const auto& lengths : all_lengths) {
      for (int64_t ring = 1; ring <= 9; ++ring) {
        for (int64_t data = 1; data <= 2; ++data) {
          const TokenLayout layout(rule, lengths, data, ring);
          for (bool causal : {true, false}) {
            for (int64_t window : {0, 1, 2, 3, 7, 30}) {
              const AttentionSpec spec{.causal = causal, .window = window};
              for (int64_t d = 0; d < data; ++d) {
                SCOPED_TRACE(ToString(rule) + " ring " + std::to_string(ring) + " window " +
                             std::to_string(window) + " data " + std::to_string(d) + " lengths " +
                             ::testing::PrintToString(lengths));
                const Schedules schedules = AllRanks(layout, spec, d);
                ASSERT_EQ(CoverError(layout, spec, d, schedules), "");
                ASSERT_EQ(MovementError(layout, d, schedules), "");
              }
            }
          }
        }
      }
    }
  }
}

TEST(Rounds, BrokenSchedulesAreCaught) {
  const TokenLayout layout(kZigzag, {24, 7}, 1, 4);
  const Schedules good = AllRanks(layout, Causal(), 0);
  ASSERT_EQ(CoverError(layout, Causal(), 0, good), "");
  // Tokens placed by another rule, or one position further.
  EXPECT_NE(CoverError(TokenLayout(kContiguous, {24, 7}, 1, 4), Causal(), 0, good), "");
  EXPECT_NE(CoverError(TokenLayout(kZigzag, {25, 7}, 1, 4), Causal(), 0, good), "");
  EXPECT_NE(CoverError(layout, Causal(5), 0, good), "");
  Schedules bad = good;
  bad[2].pop_back();
  EXPECT_EQ(CoverError(layout, Causal(), 0, bad), "pair missing");
  EXPECT_EQ(MovementError(layout, 0, bad), "lists differ");
  bad = good;
  bad[2].push_back(bad[2][0]);
  EXPECT_EQ(CoverError(layout, Causal(), 0, bad), "pair twice");
  bad = good;
  std::swap(bad[1][1].to, bad[1][1].from);
  EXPECT_EQ(MovementError(layout, 0, bad), "peer does not receive");
  bad = good;
  ++bad[3][0].recv_tokens;
  EXPECT_EQ(MovementError(layout, 0, bad), "message sizes differ");
  bad = good;
  std::swap(bad[0][1], bad[0][2]);
  EXPECT_EQ(MovementError(layout, 0, bad), "holds another block");
}

// spec: c = T / R tokens a rank; the pairs of each rank in each round.
TEST(Rounds, PairsEqualTheFormulas) {
  for (int64_t ring : {1, 2, 4, 8}) {
    const int64_t c = 32, T = c * ring;
    const Schedules zigzag = AllRanks(TokenLayout(kZigzag, {T}, 1, ring), Causal(), 0);
    const Schedules striped = AllRanks(TokenLayout(Striped(1), {T}, 1, ring), Causal(), 0);
    const Schedules contiguous = AllRanks(TokenLayout(kContiguous, {T}, 1, ring), Causal(), 0);
    int64_t contiguous_time = 0;  // of the slowest rank, summed over rounds
    for (int64_t i = 0; i < ring; ++i) {
      int64_t slowest = 0;
      for (int64_t r = 0; r < ring; ++r) {
        EXPECT_EQ(zigzag[r][i].pairs, i == 0 ? c * (c + 1) / 2 : c * c / 2);
        const bool key_rank_first = striped[r][i].kv_of <= r;
        EXPECT_EQ(striped[r][i].pairs, key_rank_first ? c * (c + 1) / 2 : c * (c - 1) / 2);
        EXPECT_EQ(contiguous[r][i].pairs, i == 0 ? c * (c + 1) / 2 : i <= r ? c * c : 0);
        EXPECT_EQ(contiguous[r][i].tiles.empty(), i > r);
        slowest = std::max(slowest, contiguous[r][i].pairs);
      }
      contiguous_time += slowest;
    }
    // Relative to T (T + 1) / 2 / R: ((2 R - 1) c + 1) / (R c + 1), which tends to 2 - 1 / R.
    EXPECT_EQ(contiguous_time * (ring * c + 1) * 2, c * (ring * c + 1) * ((2 * ring - 1) * c + 1));
  }
}

TEST(Rounds, WindowsStopTheRingEarly) {
  const int64_t ring = 8, c = 16, T = ring * c;
  const auto shifts = [&](LayoutRule rule, const AttentionSpec& spec) {
    return Shifts(Rounds(TokenLayout(rule, {T}, 1, ring), spec, 0, 3), 3, ring);
  };
  EXPECT_THAT(shifts(kContiguous, Causal()), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(shifts(kContiguous, Causal(1)), ElementsAre(0));
  EXPECT_THAT(shifts(kContiguous, Causal(2)), ElementsAre(0, 1));
  EXPECT_THAT(shifts(kContiguous, Causal(c + 1)), ElementsAre(0, 1));
  EXPECT_THAT(shifts(kContiguous, Causal(c + 2)), ElementsAre(0, 1, 2));
  EXPECT_THAT(shifts(kZigzag, Causal(c / 2 + 1)), ElementsAre(0, 1, 7));
  EXPECT_THAT(shifts(kZigzag, Causal(c / 2 + 2)), ElementsAre(0, 1, 2, 6, 7));
  EXPECT_THAT(shifts(Striped(4), Causal(2)), ElementsAre(0, 1));
  EXPECT_THAT(shifts(Striped(1), Causal(3)), ElementsAre(0, 1, 2));
}

// A round is left out if and only if no rank of any data row has an allowed pair in it.
TEST(Rounds, ExactlyTheEmptyRoundsAreLeftOut) {
  const int64_t ring = 5, data = 2;
  for (const LayoutRule& rule : kRules) {
    for (int64_t window = 0; window < 20; ++window) {
      const TokenLayout layout(rule, {31, 4, 17}, data, ring);
      std::vector<int64_t> expected;
      for (int64_t shift = 0; shift < ring; ++shift) {
        bool any = shift == 0;
        for (int64_t d = 0; d < data; ++d) {
          for (int64_t s = d; s < 3; s += data) {
            for (int64_t q = 0; q < layout.lengths()[s]; ++q) {
              for (int64_t k = 0; k < layout.lengths()[s]; ++k) {
                const int64_t of = (layout.RingOwner(s, q) + ring - shift) % ring;
                any |= Allowed(Causal(window), q, k) && layout.RingOwner(s, k) == of;
              }
            }
          }
        }
        if (any) expected.push_back(shift);
      }
      for (int64_t d = 0; d < data; ++d) {
        for (int64_t r = 0; r < ring; ++r) {
          EXPECT_EQ(Shifts(Rounds(layout, Causal(window), d, r), r, ring), expected);
        }
      }
    }
  }
}

// Tokens that a rank sends in prefill: all blocks but that of the rank above it.
TEST(Rounds, TokensSentEqualTheFormula) {
  for (const LayoutRule& rule : kRules) {
    for (int64_t ring = 1; ring <= 9; ++ring) {
      const TokenLayout layout(rule, {101, 40}, 1, ring);
      const Schedules schedules = AllRanks(layout, Causal(), 0);
      for (int64_t r = 0; r < ring; ++r) {
        ASSERT_EQ(int64_t(schedules[r].size()), ring);
        int64_t sent = 0, expected = 0;
        for (const Round& round : schedules[r]) {
          if (round.moves) sent += layout.count(0, round.kv_of);
        }
        for (int64_t j = 0; j < ring; ++j) expected += j == (r + 1) % ring ? 0 : layout.count(0, j);
        EXPECT_EQ(sent, expected);
      }
    }
  }
}

// Long sequences: the counters are exact in 64 bits, and the time follows the runs, not the pairs.
TEST(Rounds, LongSequences) {
  const int64_t T = 1 << 20, ring = 8, window = 4096;
  for (const LayoutRule& rule : {kContiguous, kZigzag, Striped(1), Striped(16)}) {
    const TokenLayout layout(rule, {T}, 1, ring);
    int64_t causal = 0, windowed = 0;
    for (int64_t r = 0; r < ring; ++r) {
      for (const Round& round : Rounds(layout, Causal(), 0, r)) causal += round.pairs;
      for (const Round& round : Rounds(layout, Causal(window), 0, r)) windowed += round.pairs;
    }
    EXPECT_EQ(causal, T * (T + 1) / 2);
    EXPECT_EQ(windowed, window * (window + 1) / 2 + (T - window) * window);
  }
}

}  // namespace
}  // namespace toroid
