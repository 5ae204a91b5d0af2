#include "core/io/checkpoint_manifest.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

struct Rectangle {
  int64_t row_begin, row_end, col_begin, col_end;
};

// A run of a rectangle, row after row, is at most three rectangles: the end of a row, whole rows,
// the begin of a row.
void AddRectangles(const CheckpointPiece& piece, std::vector<Rectangle>& out) {
  const int64_t cols = piece.slice.col_count, end = piece.begin + piece.count;
  int64_t at = piece.begin;
  while (at < end) {
    const int64_t row = at / cols, col = at % cols;
    const bool whole = col == 0 && end - at >= cols;
    const int64_t rows = whole ? (end - at) / cols : 1;
    const int64_t count = whole ? cols : std::min(cols - col, end - at);
    out.push_back({piece.slice.row_begin + row, piece.slice.row_begin + row + rows,
                   piece.slice.col_begin + col, piece.slice.col_begin + col + count});
    at += rows * count;
  }
}

// True if no two share an element. A line sweeps over the rows; what it cuts lies side by side.
bool Disjoint(const std::vector<Rectangle>& rectangles) {
  struct Event {
    int64_t row;
    bool begins;  // at equal rows those that end come first
    size_t which;
  };
  std::vector<Event> events;
  for (size_t i = 0; i < rectangles.size(); ++i) {
    events.push_back({rectangles[i].row_begin, true, i});
    events.push_back({rectangles[i].row_end, false, i});
  }
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return std::pair(a.row, a.begins) < std::pair(b.row, b.begins);
  });
  std::map<int64_t, int64_t> cut;  // columns, begin to end
  for (const Event& event : events) {
    const Rectangle& r = rectangles[event.which];
    if (!event.begins) {
      cut.erase(r.col_begin);
      continue;
    }
    const auto next = cut.lower_bound(r.col_begin);
    if (next != cut.end() && next->first < r.col_end) return false;
    if (next != cut.begin() && std::prev(next)->second > r.col_begin) return false;
    cut.emplace_hint(next, r.col_begin, r.col_end);
  }
  return true;
}

bool LiesWithin(const CheckpointPiece& piece, const CheckpointParameter& parameter) {
  const ParamSlice& s = piece.slice;
  // Differences, for a sum of two such numbers need not fit.
  if (s.row_begin < 0 || s.row_count < 1 || s.row_begin > parameter.rows - s.row_count ||
      s.col_begin < 0 || s.col_count < 1 || s.col_begin > parameter.cols - s.col_count) {
    return false;
  }
  const int64_t size = s.row_count * s.col_count;
  return piece.begin >= 0 && piece.count >= 1 && piece.begin <= size - piece.count;
}

}  // namespace

int64_t CheckpointShard::elements() const {
  int64_t sum = 0;
  for (const CheckpointPiece& piece : pieces) sum += piece.count;
  return sum;
}

std::string ShardName(int64_t rank, int64_t ranks) {
  char name[64];
  std::snprintf(name, sizeof name, "shard-%05" PRId64 "-of-%05" PRId64 ".bin", rank, ranks);
  return name;
}

absl::Status CoversOnce(const std::vector<CheckpointParameter>& parameters,
                        const std::vector<CheckpointShard>& shards) {
  std::vector<std::vector<Rectangle>> rectangles(parameters.size());
  const auto not_once = [](const CheckpointParameter& parameter) {
    return absl::InvalidArgumentError(
        absl::StrCat(parameter.name, ": the shards do not hold each element exactly once"));
  };
  std::vector<int64_t> missing;
  for (const CheckpointParameter& parameter : parameters) {
    missing.push_back(parameter.rows * parameter.cols);
  }
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    for (const CheckpointPiece& piece : shards[rank].pieces) {
      const auto wrong = [&](absl::string_view what) {
        return absl::InvalidArgumentError(
            absl::StrCat(ShardName(int64_t(rank), int64_t(shards.size())), ": a piece ", what));
      };
      if (piece.parameter < 0 || piece.parameter >= int64_t(parameters.size())) {
        return wrong("of no parameter");
      }
      const CheckpointParameter& parameter = parameters[piece.parameter];
      if (!LiesWithin(piece, parameter)) {
        return wrong(absl::StrCat("does not lie within ", parameter.name));
      }
      missing[piece.parameter] -= piece.count;
      if (missing[piece.parameter] < 0) return not_once(parameter);
      AddRectangles(piece, rectangles[piece.parameter]);
    }
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (missing[i] != 0 || !Disjoint(rectangles[i])) return not_once(parameters[i]);
  }
  return absl::OkStatus();
}

}  // namespace toroid
