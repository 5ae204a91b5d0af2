// Which tokens of which sequences a rank holds, and the schedule of ring attention that follows.
//
// A layout is a rule: the owner of a position depends on (position, lengths, shape of the mesh), so
// all ranks compute the same lists without talking. Sequences lie one after the other in *packs* of
// T tokens, by default one in each; pack p belongs to data rank p mod data. Along `ring` the rule
// cuts a pack, whatever sequences it holds, so that shares are equal:
//   contiguous  rank r holds tokens [floor(r T / R), floor((r + 1) T / R)) of the pack
//   zigzag      2R chunks [floor(c T / 2R), floor((c + 1) T / 2R)); rank r holds chunks r and
//               2R - 1 - r: causal work is equal
//   striped n   runs of n tokens dealt round robin: owner = (token / n) mod R. It depends on the
//               token's place alone, so growing text, chunks and cached prefixes never move
// Positions count from the start of a sequence, and tokens attend within their sequence only: runs
// and tiles end where it ends.
// Any length works on any ring, shorter than the ring too; shares are nearly equal and may be
// empty. Invariants: every position has one owner; positions of one rank and sequence ascend in
// local order; runs are maximal within a sequence. Immutable, hence thread-safe.
// Sources: Liu et al. 2310.01889 (ring), Brandon et al. 2311.09431 (striped).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/model/attention_spec.h"

namespace toroid {

struct LayoutRule {
  enum class Kind { kContiguous, kZigzag, kStriped };
  Kind kind = Kind::kZigzag;
  int64_t stripe = 16;  // striped only
  bool operator==(const LayoutRule&) const = default;
};

// "contiguous", "zigzag", "striped", "striped:64" (n from 1 to 2^20); the error lists these.
absl::StatusOr<LayoutRule> ParseLayoutRule(const std::string& text);
std::string ToString(const LayoutRule& rule);

// `count` consecutive positions from `first` of a sequence.
struct Run {
  int64_t sequence = 0;
  int64_t first = 0;
  int64_t count = 0;
  bool operator==(const Run&) const = default;
};

// What one ring rank holds of one sequence: its runs, and its rows in the rank's local order.
struct SequenceShare {
  std::span<const Run> runs;
  int64_t begin = 0, count = 0;
};

// Where a sequence lies: tokens [begin, begin + its length) of its pack.
struct SequencePlace {
  int64_t pack = 0;
  int64_t begin = 0;
  bool operator==(const SequencePlace&) const = default;
};

class TokenLayout {
 public:
  // lengths: tokens of each sequence, each a pack of its own. REQUIRES data, ring >= 1; 0 <= length
  // < 2^31 (positions are i32).
  TokenLayout(LayoutRule rule, std::vector<int64_t> lengths, int64_t data, int64_t ring);
  // packs[p]: tokens of each sequence (document) of pack p, maybe none. Sequences are numbered
  // through, those of pack 0 first. REQUIRES the above; a pack has less than 2^31 tokens.
  static TokenLayout Packed(LayoutRule rule, const std::vector<std::vector<int64_t>>& packs,
                            int64_t data, int64_t ring);

  int64_t data() const { return data_; }
  int64_t ring() const { return ring_; }
  const std::vector<int64_t>& lengths() const { return lengths_; }
  const LayoutRule& rule() const { return rule_; }
  const SequencePlace& place(int64_t sequence) const;
  // Sequences of a data rank, ascending.
  const std::vector<int64_t>& sequences(int64_t data_rank) const;
  // Runs of a rank in local order: by sequence, then by position.
  const std::vector<Run>& runs(int64_t data_rank, int64_t ring_rank) const;
  // Tokens of a rank, and the most that any rank of its ring (same data rank) holds.
  int64_t count(int64_t data_rank, int64_t ring_rank) const;
  int64_t max_count(int64_t data_rank) const;
  // The part of `sequence` on a ring rank of its data rank.
  SequenceShare Share(int64_t ring_rank, int64_t sequence) const;
  // Ring rank that owns a position of a sequence. REQUIRES 0 <= position < length.
  int64_t RingOwner(int64_t sequence, int64_t position) const;
  // Local index of a position on its owner; -1 elsewhere.
  int64_t LocalIndex(int64_t data_rank, int64_t ring_rank, int64_t sequence,
                     int64_t position) const;
  // Global positions of a rank's tokens in local order, and the sequence of each.
  std::vector<int32_t> Positions(int64_t data_rank, int64_t ring_rank) const;
  std::vector<int32_t> Sequences(int64_t data_rank, int64_t ring_rank) const;
  // Owner by the rule alone for text that grows, alone in its pack: REQUIRES a striped rule.
  static int64_t StripedOwner(int64_t stripe, int64_t ring, int64_t position) {
    return position / stripe % ring;
  }

 private:
  // A rank's tokens. The i-th sequence of its data rank has runs [first_run[i], first_run[i + 1]).
  struct RankTokens {
    std::vector<Run> runs;
    std::vector<int64_t> row;  // local row at which each run begins
    std::vector<int64_t> first_run = {0};
    int64_t count = 0;
  };
  TokenLayout(const std::vector<std::vector<int64_t>>& packs, LayoutRule rule, int64_t data,
              int64_t ring);
  // Cuts pack `pack`, whose sequences are the last so many, over the ring.
  void CutPack(int64_t pack, int64_t sequences);
  const RankTokens& tokens(int64_t data_rank, int64_t ring_rank) const;

  LayoutRule rule_;
  int64_t data_, ring_;
  std::vector<int64_t> lengths_, pack_lengths_;
  std::vector<SequencePlace> places_;
  std::vector<int64_t> ordinal_;                 // of each sequence on its data rank
  std::vector<std::vector<int64_t>> sequences_;  // [data]
  std::vector<RankTokens> tokens_;               // [data * ring]
};

// One round of ring attention on one rank.
struct Round {
  int64_t kv_of = 0;  // ring rank whose K and V are attended in this round
  // Local query rows against rows of that block, one tile per sequence with an allowed pair; coarse
  // (all rows that both sides hold): the kernel masks by positions. May be empty here.
  std::vector<Tile> tiles;
  bool moves = false;        // after (overlapping) this round's tiles the block travels on
  int64_t to = 0, from = 0;  // ring ranks
  int64_t recv_tokens = 0;   // tokens of the block that arrives
  int64_t pairs = 0;         // (query, key) pairs that the mask allows in this round
};

// The schedule of ring rank `ring_rank`: in round i it holds the block of rank (ring_rank -
// shift_i) mod R. Rounds in which no rank of any data row has an allowed pair are left out, the
// same ones on all ranks; the first (own block) is always kept. Rounds kept may skip: the block
// then travels by the difference of shifts. All rounds kept but the last move their block, so a
// rank sends (rounds kept - 1) blocks. Time is linear in the number of runs, and of sequences times
// R^2.
// REQUIRES spec.window >= 0.
std::vector<Round> Rounds(const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank,
                          int64_t ring_rank);
// A rule that makes a schedule; Rounds is the one there is.
using RoundsRule = std::function<std::vector<Round>(
    const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank, int64_t ring_rank)>;

}  // namespace toroid
