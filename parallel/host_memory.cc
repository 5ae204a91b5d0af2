#include "parallel/host_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace toroid {
namespace {

// The number behind `key` in a file of lines "key number ..."; without a key the file's first word.
// Empty where there is none ("max").
std::optional<int64_t> NumberIn(const std::string& path, const std::string& key = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    if (!key.empty() && (!(words >> name) || name != key)) continue;
    int64_t number = 0;
    if (words >> number && number >= 0) return number;
    return std::nullopt;
  }
  return std::nullopt;
}

// What the limit of one control group leaves.
std::optional<int64_t> Left(const std::string& group, bool second_version) {
  const auto limit = NumberIn(group + (second_version ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used =
      NumberIn(group + (second_version ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !used) return std::nullopt;
  const int64_t files =
      NumberIn(group + "/memory.stat", second_version ? "inactive_file" : "total_inactive_file")
          .value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - files));
}

}  // namespace

std::optional<int64_t> FreeMemory(const std::string& root) {
  std::optional<int64_t> least;
  const auto take = [&least](std::optional<int64_t> bytes) {
    if (bytes) least = std::min(*bytes, least.value_or(*bytes));
  };
  if (const auto available = NumberIn(root + "/proc/meminfo", "MemAvailable:")) {
    take(*available * 1024);
  }
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/a/b", "4:memory:/a/b"
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() < 3) continue;
    const bool second_version = parts[0] == "0" && parts[1].empty();
    if (!second_version && parts[1] != "memory") continue;
    const std::string top = absl::StrCat(root, "/sys/fs/cgroup", second_version ? "" : "/memory");
    std::string path = parts[2] == "/" ? "" : parts[2];
    for (;; path.resize(path.rfind('/'))) {  // every group above has a say
      take(Left(top + path, second_version));
      if (!absl::StrContains(path, '/')) break;
    }
  }
  return least;
}

}  // namespace toroid
