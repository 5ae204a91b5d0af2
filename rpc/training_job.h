// A training job in a world: the program that its ranks run, and the run directory that rank 0
// writes beside it.
//
//   config.textproto         the job as it ran last
//   metrics.jsonl            one object a step, in order: a launch that goes on from a checkpoint
//                            takes back what was written of later steps; "epoch" is of the launch
//   events.out.tfevents.*    the same numbers for TensorBoard
//   lock                     held by the run that is at it (core/io/directory_lock.h)
//   logs/rank-0000.log       JSON lines (core/train/run_log.h): begin, notes, alarms, checkpoints,
//                            export, end; the other ranks write theirs
//   export/                  if it was asked for, a Hugging Face directory of the last weights
// checkpoints/ and tokens/ are TrainingRun's (parallel/training_run.h), evidence/ is
// parallel/evidence.h's, merges.log and contributions/ parallel/merge_history.h's. "step" counts
// from 1, so that step k is the one that checkpoints/step-k has in it.
//
// An error of the disk stops no training: it is told as an alarm, once. One thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/train/events_writer.h"
#include "core/train/run_log.h"
#include "parallel/program.h"
#include "rpc/job.h"

namespace toroid {

// How fast a step, or several, used the machine; empty where its peak is not known.
struct FlopsUse {
  std::optional<double> model, hardware;  // of the peak, with recomputation not counted and counted
};

// What metrics.jsonl of a run directory tells of its weights.
struct ToldHashes {
  std::map<int64_t, uint64_t> by_step;
  // False: the last launch has begun (logs/) and told of no step. Steps behind the one that it went
  // on from are then of an earlier launch, and may have been others.
  bool by_last_launch = true;
};
ToldHashes ParamHashes(const std::string& directory);

class TrainingJob {
 public:
  // Makes the directory; nothing that is in it changes before the first step. spec: its task
  // trains, its placement is resolved (load.mesh), its paths can be opened. `epoch` is of this
  // launch. Unimplemented: its model is to be exported, and transformers has none like it.
  static absl::StatusOr<std::unique_ptr<TrainingJob>> Open(const JobSpec& spec,
                                                           const std::string& directory,
                                                           int64_t epoch);

  // For all ranks; its number is the caller's to set.
  Program program() const;
  // `events`, with what goes into the directory on the way; they refer to this.
  TrainingEvents Record(TrainingEvents events);
  // Exports first, if that was asked for and all steps are done.
  TrainResult Result(const TrainingResult& run);
  // The run ended so; the last line of its log.
  void End(const absl::Status& status);

  // Of the peak of all ranks: the job's, or else the report's.
  FlopsUse Use(const StepReport& report) const {
    return Use(report.flops, report.seconds, report.peak_flops);
  }
  // With other pods: what they and this one had to do with each other so far.
  const std::optional<ExchangeProgress>& exchange() const { return exchange_; }
  const std::string& directory() const { return directory_; }
  const JobSpec& spec() const { return spec_; }
  int64_t steps() const { return task_.plan.steps; }

 private:
  struct Closes {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<FILE, Closes>;

  TrainingJob(const JobSpec& spec, const std::string& directory, int64_t epoch)
      : spec_(spec), task_(std::get<TrainTask>(spec.task)), directory_(directory), epoch_(epoch) {}
  FlopsUse Use(const TrainingFlops& flops, double seconds, double peak_flops) const;
  absl::Status CheckExport() const;
  absl::Status Export();
  absl::Status OpenMetrics(int64_t step);
  absl::Status WriteMetrics(const StepReport& report);
  void Step(const StepReport& report);
  void Count(const StepReport& report);
  void Log(const char* event, const std::string& text);
  void Alarm(const absl::Status& status);

  const JobSpec spec_;
  const TrainTask task_;
  const std::string directory_;
  const int64_t epoch_;
  std::function<void(const std::string&)> alarm_;
  File metrics_;
  std::optional<RunLog> log_;  // always there
  std::optional<EventsWriter> events_;
  bool begun_ = false;  // a step was written
  bool alarmed_ = false;
  int64_t step_ = 0;  // steps done, of the last line
  int64_t peak_bytes_ = 0;
  double peak_flops_ = 0;  // of the last report
  double seconds_ = 0;
  TrainingFlops flops_;  // of all steps
  std::optional<ExchangeProgress> exchange_;
  double waited_ = 0;  // of seconds_, for other pods
};

// The first step of a job that trains and has spec.verify, for all ranks; its number is the
// caller's to set. Nothing is written but the tokens, into the spec's cache or below `directory`.
Program VerifyProgram(const JobSpec& spec, const std::string& directory);

// The spec with what this host's roots make of its paths: of the model, the data (patterns become
// the files that they match, each of which must lie under a root) and the cache.
absl::StatusOr<JobSpec> ResolveTraining(JobSpec spec, const std::vector<Root>& roots);

// "step 120/1000  loss 2.3146  grad norm 0.912  lr 0.0003  5120 tokens/s  mfu 41.2%": for logs.
std::string StepLine(const StepReport& report, int64_t steps, const FlopsUse& use);

// "2 pods, sent 0.126 MB, waited 3%, staleness 5": of a step with other pods.
std::string PodsText(const StepReport& report);

}  // namespace toroid
