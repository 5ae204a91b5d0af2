// What people read of a run on stderr: one line at its end, and what -v adds.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/program.h"
#include "parallel/request.h"
#include "rpc/job.h"

namespace toroid {

// "1.2 MiB" if all ranks agree, "1.2/1.3/1.2 MiB" for up to eight, else "1.2 MiB to 1.3 MiB".
std::string PerRank(const std::vector<int64_t>& bytes);

// Bytes that each rank sent over an axis; zeros if the axis has one rank.
std::vector<int64_t> BytesSent(const RunReport& report, const std::string& axis);

// "64 tokens, 12.3 tokens/s; prompt 4012 tokens, 512 tokens/s; loaded in 1.2s; peak .. per rank;
// ring
// .. sent per rank"
// Of several answers: their sums.
std::string GenerateSummary(const GenerateResult& result);
// "200 steps, loss 5.53 -> 2.31; 12.3 k tokens in 1m2s, 198 tokens/s; .. ; checkpoint DIR"
std::string TrainSummary(const TrainResult& result);
std::string ScoreSummary(const ScoreResult& result);

// "gradient of lm_head.weight of layer -1, error 1.2e-3, bound 1.0e-5"
std::string WorstTensor(const VerifyResult& result);
// How verify ends: an error that names the worst tensor, with exit code 1, unless all are within
// their bounds.
absl::Status Verdict(const VerifyResult& result);

// Of a job that has progress: "ID  train 120/1000  loss 2.3146  5120.0 tokens/s"; of one on several
// pods "ID  train 120/1000  loss a 2.3146, b 2.3101  10240.0 tokens/s  sent 0.126 MB  waited 3%
// staleness 5", the tokens of all pods, the bytes of all ranks, the longest wait.
std::string JobProgressLine(const JobStatus& job);

// "pod a, mesh data=1,ring=2,tensor=1, model already loaded"
std::string AcceptedLine(const Accepted& accepted);

// What -v adds, a line each. Of a world: mesh, layout and limits, then each rank's coordinates and
// host; hosts: by rank, or empty if they are not known.
std::vector<std::string> WorldDetails(const LoadRequest& load, const MeshShape& mesh,
                                      const std::vector<std::string>& hosts);
// The same in direct mode, where rank 0 knows the hosts and the context.
std::vector<std::string> WorldDetails(LoadRequest load, const LoadedModel& model);
// "prompt 0, answer 1:", the heading of one of several answers.
std::string AnswerHeading(int64_t prompt_index, int64_t index);
// Timing and traffic of all answers of a request together; memory: the most of any.
RunReport WholeReport(const GenerateResult& result);
// Of a finished run, each phase that took time: seconds, rate, bytes sent per rank by axis; then
// memory, foreseen and used.
std::vector<std::string> RunDetails(const RunReport& report);

}  // namespace toroid
