// Who the ranks of a world are, as they noted it at their start.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace toroid {

struct RankRecord {
  int rank = -1;
  int64_t pid = 0;
  std::string host;
};

// Those that are there, by rank.
std::vector<RankRecord> ReadRankRecords(const std::string& scratch_dir, int ranks);

}  // namespace toroid
