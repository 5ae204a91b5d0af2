// Why a world ended, from mpirun's exit and from what it wrote. Plain text work.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "rpc/job.h"
#include "rpc/rank_record.h"

namespace toroid {

// One line of `mpirun --tag-output`: "[1,2]<stderr>:text" is rank 2's; others are mpirun's own
// words.
LogLine ParseTaggedLine(const std::string& line, bool error);

// wait_status: of mpirun, as waitpid gives it. tail: the last lines of the world, in order. Names
// the first rank that failed, its host, exit code and signal, as far as mpirun, the ranks' own last
// words and their records tell.
WorldExit DescribeExit(int wait_status, const std::deque<LogLine>& tail,
                       const std::vector<RankRecord>& records);

}  // namespace toroid
