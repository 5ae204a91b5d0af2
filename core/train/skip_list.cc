#include "core/train/skip_list.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr int64_t kLargest = int64_t{1} << 62;  // a sum of two indices fits

}  // namespace

absl::StatusOr<SkipList> SkipList::Parse(absl::string_view text) {
  SkipList list;
  if (text.empty()) return list;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, '-');
    int64_t begin, end;
    if (ends.size() != 2 || !absl::SimpleAtoi(ends[0], &begin) ||
        !absl::SimpleAtoi(ends[1], &end) || begin < 0 || begin >= end || end > kLargest) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", part, "\" is no window of tokens to skip; write BEGIN-END, as in 4096-8192"));
    }
    list.Skip(begin, end);
  }
  return list;
}

std::string SkipList::ToString() const {
  return absl::StrJoin(windows_, ",", [](std::string* out, const Window& window) {
    absl::StrAppend(out, window.begin, "-", window.end);
  });
}

int64_t SkipList::At(int64_t v) const {
  TOROID_CHECK_GE(v, 0);
  for (const Window& window : windows_) {
    if (window.begin > v) break;
    v += window.end - window.begin;
  }
  return v;
}

void SkipList::SkipOfRun(int64_t begin, int64_t end) {
  TOROID_CHECK_LE(begin, end);
  if (begin == end) return;
  // Whatever lies between the first and the last token is either in the run's range or left out
  // already.
  Skip(At(begin), At(end - 1) + 1);
}

void SkipList::Skip(int64_t begin, int64_t end) {
  TOROID_CHECK_GE(begin, 0);
  TOROID_CHECK_LE(begin, end);
  if (begin == end) return;
  Window added{begin, end};
  std::vector<Window> windows;
  for (const Window& window : windows_) {
    if (window.end < added.begin || window.begin > added.end) {
      windows.push_back(window);
    } else {
      added = {std::min(added.begin, window.begin), std::max(added.end, window.end)};
    }
  }
  windows.push_back(added);
  std::sort(windows.begin(), windows.end(),
            [](const Window& a, const Window& b) { return a.begin < b.begin; });
  windows_ = std::move(windows);
}

}  // namespace toroid
