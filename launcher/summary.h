// What people read after a run: one line on stderr.
#pragma once

#include <string>
#include <vector>

#include "parallel/request.h"

namespace toroid {

// "1.2 MiB" if all ranks agree, "1.2/1.3/1.2 MiB" for up to eight, else "1.2
// MiB to 1.3 MiB".
std::string PerRank(const std::vector<int64_t>& bytes);

// Bytes that each rank sent over an axis; zeros if the axis has one rank.
std::vector<int64_t> BytesSent(const RunReport& report, const std::string& axis);

// "64 tokens, 12.3 tokens/s; prompt 4012 tokens, 512 tokens/s; loaded in 1.2s;
// peak .. per rank; ring .. sent per rank"
std::string GenerateSummary(const GenerateResult& result);
std::string ScoreSummary(const ScoreResult& result);

}  // namespace toroid
