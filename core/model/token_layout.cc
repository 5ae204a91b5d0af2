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

// First position of part `part` of `parts` nearly equal parts of [0, length).
int64_t PartBegin(int64_t part, int64_t parts, int64_t length) { return part * length / parts; }

// The part that holds `position`: the largest i with floor(i T / n) <= position, that is
// i T / n < position + 1.
int64_t PartOf(int64_t position, int64_t parts, int64_t length) {
  return ((position + 1) * parts - 1) / length;
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
    : rule_(rule), lengths_(std::move(lengths)), data_(data), ring_(ring) {
  TOROID_CHECK_GE(data, 1);
  TOROID_CHECK_GE(ring, 1);
  TOROID_CHECK_GE(rule.stripe, 1);
  tokens_.resize(data * ring);
  for (int64_t sequence = 0; sequence < int64_t(lengths_.size()); ++sequence) {
    TOROID_CHECK_GE(lengths_[sequence], 0);
    TOROID_CHECK_LE(lengths_[sequence], kMaxLength);
    for (int64_t rank = 0; rank < ring; ++rank) {
      RankTokens& mine = tokens_[sequence % data * ring + rank];
      for (const Run& run : SequenceRuns(rank, sequence)) {
        mine.runs.push_back(run);
        mine.row.push_back(mine.count);
        mine.count += run.count;
      }
      mine.first_run.push_back(mine.runs.size());
    }
  }
}

std::vector<Run> TokenLayout::SequenceRuns(int64_t ring_rank, int64_t sequence) const {
  const int64_t length = lengths_[sequence];
  std::vector<Run> runs;
  const auto append = [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    if (!runs.empty() && runs.back().first + runs.back().count == begin) {
      runs.back().count +=
          end - begin;  // chunks R - 1 and R of a zigzag touch; ring 1: all stripes
    } else {
      runs.push_back({sequence, begin, end - begin});
    }
  };
  const auto append_part = [&](int64_t part, int64_t parts) {
    append(PartBegin(part, parts, length), PartBegin(part + 1, parts, length));
  };
  switch (rule_.kind) {
    case LayoutRule::Kind::kContiguous:
      append_part(ring_rank, ring_);
      break;
    case LayoutRule::Kind::kZigzag:
      append_part(ring_rank, 2 * ring_);
      append_part(2 * ring_ - 1 - ring_rank, 2 * ring_);
      break;
    case LayoutRule::Kind::kStriped:
      for (int64_t begin = ring_rank * rule_.stripe; begin < length;
           begin += ring_ * rule_.stripe) {
        append(begin, std::min(begin + rule_.stripe, length));
      }
      break;
  }
  return runs;
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
  TOROID_CHECK(sequence >= 0 && sequence < int64_t(lengths_.size()));
  const RankTokens& mine = tokens(sequence % data_, ring_rank);
  const int64_t begin = mine.first_run[sequence / data_];
  const int64_t end = mine.first_run[sequence / data_ + 1];
  const auto row = [&](int64_t run) {
    return run < int64_t(mine.row.size()) ? mine.row[run] : mine.count;
  };
  return {std::span<const Run>(mine.runs).subspan(begin, end - begin), row(begin),
          row(end) - row(begin)};
}

int64_t TokenLayout::RingOwner(int64_t sequence, int64_t position) const {
  TOROID_CHECK(sequence >= 0 && sequence < int64_t(lengths_.size()));
  const int64_t length = lengths_[sequence];
  TOROID_CHECK_GE(position, 0);
  TOROID_CHECK_LT(position, length);
  switch (rule_.kind) {
    case LayoutRule::Kind::kContiguous:
      return PartOf(position, ring_, length);
    case LayoutRule::Kind::kZigzag: {
      const int64_t chunk = PartOf(position, 2 * ring_, length);
      return std::min(chunk, 2 * ring_ - 1 - chunk);
    }
    case LayoutRule::Kind::kStriped:
      return StripedOwner(rule_.stripe, ring_, position);
  }
  TOROID_CHECK_MSG(false, "unknown layout");
}

int64_t TokenLayout::LocalIndex(int64_t data_rank, int64_t ring_rank, int64_t sequence,
                                int64_t position) const {
  if (sequence < 0 || sequence >= int64_t(lengths_.size()) || sequence % data_ != data_rank) {
    return -1;
  }
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
