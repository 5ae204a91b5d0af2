// toroid verify --replay RUN: the merges and weights of a run's pods made again.
#include "launcher/replay.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/progress.h"
#include "launcher/summary.h"
#include "launcher/terminal.h"
#include "parallel/contribution_file.h"
#include "parallel/training_plan.h"
#include "rpc/training_job.h"

namespace toroid {
namespace {

bool HasLog(const std::string& directory) {
  return PosixFiles().Open(absl::StrCat(directory, "/", kMergeLogName)).ok();
}

// A pod's directory, or those of all pods of a run.
absl::StatusOr<std::vector<std::string>> PodsOf(const std::string& run) {
  if (HasLog(run)) return std::vector<std::string>{run};
  std::vector<std::string> pods;
  while (HasLog(PodDirectory(run, int64_t(pods.size()), /*pods=*/2))) {
    pods.push_back(PodDirectory(run, int64_t(pods.size()), 2));
  }
  if (!pods.empty()) return pods;
  return absl::NotFoundError(absl::StrCat("no log of merges: neither ", run, "/", kMergeLogName,
                                          " nor ", PodDirectory(run, 0, 2), "/", kMergeLogName,
                                          ": give the directory of a run on several pods"));
}

std::string ReplayTable(const ReplayResult& result) {
  std::vector<std::vector<std::string>> rows = {
      {"pod", "merges", "the same", "weights", "of step", "compared"}};
  for (const auto& [directory, pod] : result.pods) {
    std::vector<std::string> row = {directory, absl::StrCat(pod.merges),
                                    absl::StrCat(pod.replayed)};
    if (pod.weights && pod.weights->compared > 0) {
      row.insert(row.end(),
                 {absl::StrFormat("%016x", pod.weights->hash), absl::StrCat(pod.weights->last),
                  absl::StrCat(pod.weights->compared, " times")});
    } else {
      const bool outer = pod.outer && pod.same();
      row.insert(row.end(), {outer ? absl::StrFormat("outer %016x", pod.hash) : "-", "-",
                             outer ? "each merge" : "-"});
    }
    rows.push_back(std::move(row));
  }
  return Table(rows, ColourStdout());
}

// What was not compared of weights, and why: a sentence for each pod.
std::vector<std::string> NotCompared(const ReplayResult& result) {
  std::vector<std::string> sentences;
  for (const auto& [directory, pod] : result.pods) {
    if (!pod.weights || pod.weights->compared > 0) continue;
    sentences.push_back(
        !pod.weights->not_made.empty()
            ? absl::StrCat("the weights were not made again: ", pod.weights->not_made)
            : absl::StrCat("the weights were compared with nothing: ", directory,
                           ": its metrics.jsonl has no hash of them: train with "
                           "param_hash_every: N"));
  }
  return sentences;
}

}  // namespace

absl::Status ReplayRun(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> directories,
                          PodsOf(arguments.Text("--replay")));
  ProgressMeter meter(ProgressOption(arguments));
  ReplayResult result;
  for (const std::string& directory : directories) {
    ReplayOptions options;
    ToldHashes told = ParamHashes(directory);
    options.param_hashes = std::move(told.by_step);
    options.told_by_last_launch = told.by_last_launch;
    options.on_progress = [&](int64_t done, int64_t all) {
      meter.Update(absl::StrCat("replay ", directory), done, all, "merges");
    };
    const auto replayed = ReplayMerges(PosixFiles(), directory, options);
    meter.Clear();
    TOROID_RETURN_IF_ERROR(replayed.status());
    if (!replayed->same() && result.differs.empty()) {
      result.differs = absl::StrCat(directory, ": ", replayed->differs);
    }
    result.pods.emplace_back(directory, *replayed);
  }
  if (result.differs.empty()) {
    TOROID_ASSIGN_OR_RETURN(result.differs, CompareMergeLogs(PosixFiles(), directories));
  }
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(ReplayJson(result), "\n"));
  } else {
    WriteStdout(absl::StrCat(ReplayTable(result), result.differs.empty() ? "pass" : "FAIL", "\n"));
  }
  for (const std::string& sentence : NotCompared(result)) Talk(sentence);
  if (result.differs.empty()) return absl::OkStatus();
  return WithExitCode(absl::AbortedError(absl::StrCat("not what the log says: ", result.differs,
                                                      ": the log or what was kept was changed")),
                      kExitFailure);
}

}  // namespace toroid
