#include "launcher/suggest.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace toroid {

int EditDistance(absl::string_view a, absl::string_view b) {
  const int n = static_cast<int>(a.size()), m = static_cast<int>(b.size());
  // d[i][j]: edits between the first i letters of a and the first j of b.
  std::vector<std::vector<int>> d(n + 1, std::vector<int>(m + 1));
  const auto same = [&](int i, int j) {
    return absl::ascii_tolower(a[i]) == absl::ascii_tolower(b[j]);
  };
  for (int i = 0; i <= n; ++i) {
    for (int j = 0; j <= m; ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min(
          {d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same(i - 1, j - 1) ? 0 : 1)});
      if (i > 1 && j > 1 && same(i - 1, j - 2) && same(i - 2, j - 1)) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[n][m];
}

std::string Nearest(absl::string_view word, const std::vector<std::string>& candidates) {
  if (word.empty() || word.size() > 64) return "";
  const int size = static_cast<int>(word.size());
  int best = std::max(size / 3, size >= 4 ? 2 : 1) + 1;
  std::string nearest, prefixed;
  int prefix_count = 0;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(word, candidate);
    if (distance < best) best = distance, nearest = candidate;
    if (absl::StartsWithIgnoreCase(candidate, word)) prefixed = candidate, ++prefix_count;
  }
  return nearest.empty() && prefix_count == 1 ? prefixed : nearest;
}

std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates,
                       absl::string_view otherwise) {
  const std::string nearest = Nearest(word, candidates);
  return nearest.empty() ? absl::StrCat(": ", otherwise)
                         : absl::StrCat(": did you mean ", nearest, "?");
}

}  // namespace toroid
