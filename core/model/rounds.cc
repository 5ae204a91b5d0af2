// The schedule of ring attention: declared in token_layout.h.
#include <algorithm>

#include "core/check.h"
#include "core/model/token_layout.h"

namespace toroid {
namespace {

// F(x) = sum over y = 0 .. x of |{keys <= y}|: the causal pairs of queries 0 .. x. A run of m keys
// from g adds t (t + 1) / 2 with t = x - g + 1 while x is inside it, m x + c with
// c = m (m + 1) / 2 - m (g + m - 1) from its last key on.
class CausalPairs {
 public:
  explicit CausalPairs(std::span<const Run> keys) : keys_(keys) {}

  // REQUIRES: x never falls from call to call.
  int64_t UpTo(int64_t x) {
    while (next_ < keys_.size() && keys_[next_].first + keys_[next_].count - 1 <= x) {
      const int64_t m = keys_[next_].count;
      passed_ += m;
      constant_ += m * (m + 1) / 2 - m * (keys_[next_].first + m - 1);
      ++next_;
    }
    const int64_t t = next_ < keys_.size() ? std::max<int64_t>(x - keys_[next_].first + 1, 0) : 0;
    return passed_ * x + constant_ + t * (t + 1) / 2;
  }

 private:
  std::span<const Run> keys_;
  size_t next_ = 0;  // the first run not wholly <= x
  int64_t passed_ = 0, constant_ = 0;
};

// Pairs with key <= query - distance.
int64_t PairsAtDistance(const SequenceShare& q, const SequenceShare& k, int64_t distance) {
  CausalPairs pairs(k.runs);
  int64_t sum = 0;
  for (const Run& run : q.runs) {
    const int64_t before = pairs.UpTo(run.first - 1 - distance);
    sum += pairs.UpTo(run.first + run.count - 1 - distance) - before;
  }
  return sum;
}

// Pairs of one sequence that the mask allows: query - window < key (<= query).
int64_t AllowedPairs(const SequenceShare& q, const SequenceShare& k, const AttentionSpec& spec) {
  const int64_t pairs = spec.causal ? PairsAtDistance(q, k, 0) : q.count * k.count;
  return spec.window > 0 ? pairs - PairsAtDistance(q, k, spec.window) : pairs;
}

// Whether AllowedPairs > 0, usually seen at the first runs. A run of queries [f, e] sees a key k if
// and only if f - window < k (<= e): the query max(f, k) does.
bool AnyAllowed(const SequenceShare& q, const SequenceShare& k, const AttentionSpec& spec) {
  auto key = k.runs.begin();
  for (const Run& run : q.runs) {
    if (spec.window > 0) {
      while (key != k.runs.end() && key->first + key->count - 1 <= run.first - spec.window) ++key;
    }
    if (key == k.runs.end()) return false;
    if (!spec.causal || key->first <= run.first + run.count - 1) return true;
  }
  return false;
}

bool AnyRankAttends(const TokenLayout& layout, const AttentionSpec& spec, int64_t shift) {
  const int64_t ring = layout.ring(), sequences = layout.lengths().size();
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (int64_t rank = 0; rank < ring; ++rank) {
      const int64_t kv_of = (rank + ring - shift) % ring;
      if (AnyAllowed(layout.Share(rank, sequence), layout.Share(kv_of, sequence), spec)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

std::vector<Round> Rounds(const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank,
                          int64_t ring_rank) {
  TOROID_CHECK_GE(spec.window, 0);
  const int64_t ring = layout.ring();
  std::vector<int64_t> shifts = {0};
  for (int64_t shift = 1; shift < ring; ++shift) {
    if (AnyRankAttends(layout, spec, shift)) shifts.push_back(shift);
  }
  std::vector<Round> rounds(shifts.size());
  for (size_t i = 0; i < shifts.size(); ++i) {
    Round& round = rounds[i];
    round.kv_of = (ring_rank + ring - shifts[i]) % ring;
    for (const int64_t sequence : layout.sequences(data_rank)) {
      const SequenceShare q = layout.Share(ring_rank, sequence);
      const SequenceShare k = layout.Share(round.kv_of, sequence);
      const int64_t pairs = AllowedPairs(q, k, spec);
      if (pairs > 0) round.tiles.push_back({q.begin, q.count, k.begin, k.count});
      round.pairs += pairs;
    }
    if (i + 1 == shifts.size()) break;
    // What round i + 1 needs here, the block of ring_rank - shift_{i+1}, lies in round i on the
    // rank that is shift_{i+1} - shift_i below.
    const int64_t step = shifts[i + 1] - shifts[i];
    round.moves = true;
    round.to = (ring_rank + step) % ring;
    round.from = (ring_rank + ring - step) % ring;
    round.recv_tokens = layout.count(data_rank, (ring_rank + ring - shifts[i + 1]) % ring);
  }
  return rounds;
}

}  // namespace toroid
