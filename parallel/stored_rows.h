// StoredRows: some of a parameter's rows, where it lies in a rank's stored range of a group. Rows
// of an embedding that no token of a micro-batch is of get no gradient from it: theirs is whole
// before the rest of their group's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/model/params.h"

namespace toroid {

inline constexpr char kEmbeddingTable[] = "model.embed_tokens.weight";

struct StoredRows {
  int64_t begin = 0;         // of the first row's first element in the stored range
  int64_t width = 1;         // elements of a row
  std::vector<bool> chosen;  // by row

  // visit(range, chosen) for elements [begin, end) of the stored range, in order, those together
  // that follow each other and are chosen alike.
  template <typename Visit>
  void Split(Range elements, const Visit& visit) const;
  // Of the first `size` elements those in chosen rows, or all others.
  std::vector<Range> Ranges(int64_t size, bool of_chosen) const;

 private:
  int64_t RowOf(int64_t element) const { return (element - begin) / width; }
  bool InRows(int64_t element) const {
    return element >= begin && RowOf(element) < int64_t(chosen.size());
  }
  bool Chosen(int64_t element) const { return InRows(element) && chosen[RowOf(element)]; }
  // Behind the row of this element, or behind those before or after all rows.
  int64_t EndOfRow(int64_t element) const {
    if (element < begin) return begin;
    return InRows(element) ? begin + (RowOf(element) + 1) * width
                           : std::numeric_limits<int64_t>::max();
  }
};

template <typename Visit>
void StoredRows::Split(Range elements, const Visit& visit) const {
  for (int64_t at = elements.begin; at < elements.end;) {
    const bool alike = Chosen(at);
    int64_t stop = EndOfRow(at);
    while (stop < elements.end && Chosen(stop) == alike) stop = EndOfRow(stop);
    stop = std::min(stop, elements.end);
    visit(Range{at, stop}, alike);
    at = stop;
  }
}

inline std::vector<Range> StoredRows::Ranges(int64_t size, bool of_chosen) const {
  std::vector<Range> ranges;
  Split({0, size}, [&](Range range, bool is_chosen) {
    if (is_chosen == of_chosen) ranges.push_back(range);
  });
  return ranges;
}

}  // namespace toroid
