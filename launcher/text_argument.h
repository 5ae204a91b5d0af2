// Arguments that take @FILE or - (standard input): one argument ends at 128 KiB, files do not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

// All bytes of a file, or of standard input for "-". NotFound and the like name the path; more
// than 1 GiB is refused.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

// "@FILE" and "-" are replaced by what they hold, anything else is the text itself ("@@x" is "@x").
absl::StatusOr<std::string> TextArgument(const std::string& argument);

// "1,2,3" or "1 2 3", also JSON's [1, 2, 3]; after @FILE and -. InvalidArgument names the word that
// is no id.
absl::StatusOr<std::vector<int32_t>> IdsArgument(const std::string& argument);

}  // namespace toroid
