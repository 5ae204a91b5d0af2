// "did you mean": the candidate nearest to a mistyped word.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace toroid {

// Edits (insert, delete, replace, swap of neighbours; Damerau 1964, optimal string alignment) that
// turn a into b, upper and lower case alike.
int EditDistance(absl::string_view a, absl::string_view b);

// The candidate within a third of the word's length (at least 2 edits for words of 4 letters or
// more), or a unique candidate that begins with the word; empty if none is that near.
std::string Nearest(absl::string_view word, const std::vector<std::string>& candidates);

// ": did you mean --mesh?" or, if nothing is near, ": " + otherwise.
std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates,
                       absl::string_view otherwise);

}  // namespace toroid
