#include "core/model/token_layout.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr int64_t kMaxStripe = int64_t{1} << 20;
constexpr int64_t kMaxLength = (int64_t{1} << 31) - 1;

// First token of part `part` of `parts` nearly equal parts of [0, length).
int64_t PartBegin(int64_t part, int64_t parts, int64_t length) { return part * length / parts; }

// The part that holds `token`: the largest i with floor(i T / n) <= token, that is
// i T / n < token + 1.
int64_t PartOf(int64_t token, int64_t parts, int64_t length) {
  return ((token + 1) * parts - 1) / length;
}

struct Interval {
  int64_t begin, end;
};

// What a ring rank holds of a pack of `length` tokens: ascending, none empty, none touching.
std::vector<Interval> RankIntervals(const LayoutRule& rule, int64_t rank, int64_t ring,
                                    int64_t length) {
  std::vector<Interval> share;
  const auto append = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    if (!share.empty() && share.back().end == begin) {
      share.back().end = end;  // chunks R - 1 and R of a zigzag touch; ring 1: all stripes
    } else {
      share.push_back({begin, end});
    }
  };
  const auto append_part = [&](int64_t part, int64_t parts) {
    append(PartBegin(part, parts, length), PartBegin(part + 1, parts, length));
  };
  switch (rule.kind) {
    case LayoutRule::Kind::kContiguous:
      append_part(rank, ring);
      break;
    case LayoutRule::Kind::kZigzag:
      append_part(rank, 2 * ring);
      append_part(2 * ring - 1 - rank, 2 * ring);
      break;
    case LayoutRule::Kind::kStriped:
      for (int64_t begin = rank * rule.stripe; begin < length; begin += ring * rule.stripe) {
        append(begin, std::min(begin + rule.stripe, length));
      }
      break;
  }
  return share;
}

std::vector<std::vector<int64_t>> OneInEach(const std::vector<int64_t>& lengths) {
  std::vector<std::vector<int64_t>> packs;
  for (const int64_t length : lengths) packs.push_back({length});
  return packs;
}

}  // namespace

absl::StatusOr<LayoutRule> ParseLayoutRule(const std::string& text) {
  if (text == "contiguous") return LayoutRule{LayoutRule::Kind::kContiguous};
  if (text == "zigzag") return LayoutRule{LayoutRule::Kind::kZigzag};
  if (text == "striped") return LayoutRule{LayoutRule::Kind::kStriped};
  const std::string prefix = "striped:";
  if (text.compare(0, prefix.size(), prefix) == 0) {
    int64_t stripe = 0;
    if (absl::SimpleAtoi(text.substr(prefix.size()), &stripe) && stripe >= 1 &&
        stripe <= kMaxStripe) {
      return LayoutRule{LayoutRule::Kind::kStriped, stripe};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("layout '", text,
                   "' is none of contiguous, zigzag, striped, striped:N with N tokens a stripe "
                   "from 1 to ",
                   kMaxStripe));
}

std::string ToString(const LayoutRule& rule) {
  switch (rule.kind) {
    case LayoutRule::Kind::kContiguous:
      return "contiguous";
    case LayoutRule::Kind::kZigzag:
      return "zigzag";
    case LayoutRule::Kind::kStriped:
      return absl::StrCat("striped:", rule.stripe);
  }
  TOROID_CHECK_MSG(false, "unknown layout");
}

TokenLayout::TokenLayout(LayoutRule rule, std::vector<int64_t> lengths, int64_t data, int64_t ring)
    : TokenLayout(OneInEach(lengths), rule, data, ring) {}

TokenLayout TokenLayout::Packed(LayoutRule rule, const std::vector<std::vector<int64_t>>& packs,
                                int64_t data, int64_t ring) {
  return TokenLayout(packs, rule, data, ring);
}

TokenLayout::TokenLayout(const std::vector<std::vector<int64_t>>& packs, LayoutRule rule,
                         int64_t data, int64_t ring)
    : rule_(rule), data_(data), ring_(ring) {
  TOROID_CHECK_GE(data, 1);
  TOROID_CHECK_GE(ring, 1);
  TOROID_CHECK_GE(rule.stripe, 1);
  sequences_.resize(data);
  tokens_.resize(data * ring);
  for (int64_t pack = 0; pack < int64_t(packs.size()); ++pack) {
    std::vector<int64_t>& of_rank = sequences_[pack % data];
    int64_t begin = 0;
    for (const int64_t length : packs[pack]) {
      TOROID_CHECK_GE(length, 0);
      TOROID_CHECK_LE(length, kMaxLength - begin);
      places_.push_back({pack, begin});
      ordinal_.push_back(of_rank.size());
      of_rank.push_back(lengths_.size());
      lengths_.push_back(length);
      begin += length;
    }
    pack_lengths_.push_back(begin);
    CutPack(pack, packs[pack].size());
  }
}

void TokenLayout::CutPack(int64_t pack, int64_t sequences) {
  const int64_t end = lengths_.size();
  for (int64_t rank = 0; rank < ring_; ++rank) {
    RankTokens& mine = tokens_[pack % data_ * ring_ + rank];
    const std::vector<Interval> share = RankIntervals(rule_, rank, ring_, pack_lengths_[pack]);
    auto first = share.begin();  // that reaches into the sequence
    for (int64_t sequence = end - sequences; sequence < end; ++sequence) {
      const int64_t from = places_[sequence].begin, to = from + lengths_[sequence];
      while (first != share.end() && first->end <= from) ++first;
      for (auto i = first; i != share.end() && i->begin < to; ++i) {
        const int64_t begin = std::max(i->begin, from), count = std::min(i->end, to) - begin;
        if (count == 0) continue;  // the sequence is empty
        mine.runs.push_back({sequence, begin - from, count});
        mine.row.push_back(mine.count);
        mine.count += count;
      }
      mine.first_run.push_back(mine.runs.size());
    }
  }
}

const SequencePlace& TokenLayout::place(int64_t sequence) const {
  TOROID_CHECK(sequence >= 0 && sequence < int64_t(places_.size()));
  return places_[sequence];
}

const std::vector<int64_t>& TokenLayout::sequences(int64_t data_rank) const {
  TOROID_CHECK(data_rank >= 0 && data_rank < data_);
  return sequences_[data_rank];
}

const TokenLayout::RankTokens& TokenLayout::tokens(int64_t data_rank, int64_t ring_rank) const {
  TOROID_CHECK(data_rank >= 0 && data_rank < data_ && ring_rank >= 0 && ring_rank < ring_);
  return tokens_[data_rank * ring_ + ring_rank];
}

const std::vector<Run>& TokenLayout::runs(int64_t data_rank, int64_t ring_rank) const {
  return tokens(data_rank, ring_rank).runs;
}

int64_t TokenLayout::count(int64_t data_rank, int64_t ring_rank) const {
  return tokens(data_rank, ring_rank).count;
}

int64_t TokenLayout::max_count(int64_t data_rank) const {
  int64_t most = 0;
  for (int64_t rank = 0; rank < ring_; ++rank) most = std::max(most, count(data_rank, rank));
  return most;
}

SequenceShare TokenLayout::Share(int64_t ring_rank, int64_t sequence) const {
  const RankTokens& mine = tokens(place(sequence).pack % data_, ring_rank);
  const int64_t begin = mine.first_run[ordinal_[sequence]];
  const int64_t end = mine.first_run[ordinal_[sequence] + 1];
  const auto row = [&](int64_t run) {
    return run < int64_t(mine.row.size()) ? mine.row[run] : mine.count;
  };
  return {std::span<const Run>(mine.runs).subspan(begin, end - begin), row(begin),
          row(end) - row(begin)};
}

int64_t TokenLayout::RingOwner(int64_t sequence, int64_t position) const {
  const SequencePlace& at = place(sequence);
  TOROID_CHECK_GE(position, 0);
  TOROID_CHECK_LT(position, lengths_[sequence]);
  const int64_t token = at.begin + position, length = pack_lengths_[at.pack];
  switch (rule_.kind) {
    case LayoutRule::Kind::kContiguous:
      return PartOf(token, ring_, length);
    case LayoutRule::Kind::kZigzag: {
      const int64_t chunk = PartOf(token, 2 * ring_, length);
      return std::min(chunk, 2 * ring_ - 1 - chunk);
    }
    case LayoutRule::Kind::kStriped:
      return StripedOwner(rule_.stripe, ring_, token);
  }
  TOROID_CHECK_MSG(false, "unknown layout");
}

int64_t TokenLayout::LocalIndex(int64_t data_rank, int64_t ring_rank, int64_t sequence,
                                int64_t position) const {
  if (sequence < 0 || sequence >= int64_t(lengths_.size())) return -1;
  if (places_[sequence].pack % data_ != data_rank) return -1;
  const SequenceShare share = Share(ring_rank, sequence);
  const auto after = std::upper_bound(share.runs.begin(), share.runs.end(), position,
                                      [](int64_t p, const Run& run) { return p < run.first; });
  if (after == share.runs.begin()) return -1;
  const Run& run = *(after - 1);
  if (position >= run.first + run.count) return -1;
  const RankTokens& mine = tokens(data_rank, ring_rank);
  return mine.row[&run - mine.runs.data()] + position - run.first;
}

std::vector<int32_t> TokenLayout::Positions(int64_t data_rank, int64_t ring_rank) const {
  std::vector<int32_t> positions;
  positions.reserve(count(data_rank, ring_rank));
  for (const Run& run : runs(data_rank, ring_rank)) {
    for (int64_t i = 0; i < run.count; ++i) positions.push_back(int32_t(run.first + i));
  }
  return positions;
}

std::vector<int32_t> TokenLayout::Sequences(int64_t data_rank, int64_t ring_rank) const {
  std::vector<int32_t> sequences;
  sequences.reserve(count(data_rank, ring_rank));
  for (const Run& run : runs(data_rank, ring_rank)) {
    sequences.insert(sequences.end(), run.count, int32_t(run.sequence));
  }
  return sequences;
}

}  // namespace toroid
