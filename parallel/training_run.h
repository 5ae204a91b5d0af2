// TrainingRun: a run of many steps on one rank of a world: it owns the trainer, the data and the
// directory, and tells what happened of each step.
//
// SPMD: every rank makes the same calls. Rank 0 alone writes metrics and answers `stop`; ranks
// agree on it once a step, so that all stop behind the same one. A run is a function of its plan:
// killed and started again it goes on from its newest checkpoint with the batches that it would
// have seen. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/directory_lock.h"
#include "core/io/ticking_files.h"
#include "core/train/clip.h"
#include "core/train/flops.h"
#include "core/train/spike.h"
#include "parallel/checkpoint.h"
#include "parallel/trainer.h"
#include "parallel/training_data.h"
#include "parallel/training_plan.h"

namespace toroid {

// A step as metrics.jsonl has it.
struct StepReport {
  StepResult result;
  double seconds = 0;
  double tokens_per_s = 0;
  int64_t peak_bytes = 0;  // accounted, of this rank
  // In which this rank waited for messages, computing nothing; none on a GPU.
  std::optional<double> exposed_seconds;
  std::optional<uint64_t> param_hash;  // of the weights after the step, if it was asked for
  // With other pods: of all ranks of this one in this step and between it and the one before.
  struct Pods {
    int64_t taking_part = 0;
    int64_t staleness = 0;   // steps between sending and applying what was merged; 0: nothing was
    int64_t bytes_sent = 0;  // of payloads
    double seconds_waited = 0;  // of the rank that waited longest
    int64_t dropped = 0;        // messages that came too late, or of a launch that was lost
    int64_t reconnects = 0;     // streams to other pods that were cut and went on
    // This pod was behind: it left out its part of the batch, to reach the others.
    bool hurried = false;
    // diloco, streaming: of the outer weights after the step, with param_hash
    std::optional<uint64_t> outer_hash;
  };
  std::optional<Pods> pods;
  // Of the step, on all ranks of the pod: divided by seconds x the peak of all, MFU and HFU.
  TrainingFlops flops;
  double peak_flops = 0;  // FLOP/s of all ranks of the pod (parallel/device.h); 0: not known
};

enum class StopAsked {
  kNo,
  kRequeue,  // write a checkpoint and end: exit code 75
  kEnd,      // the same, but nobody will start it again by himself
  kCancel    // end at once; a checkpoint that is being written is finished
};

// Called on rank 0 only, but on_resumed.
struct TrainingEvents {
  std::function<void(const TokenCacheProgress&)> on_tokenised = [](const TokenCacheProgress&) {};
  std::function<void(const StepReport&)> on_step = [](const StepReport&) {};
  std::function<void(const CheckpointOutcome&)> on_checkpoint = [](const CheckpointOutcome&) {};
  // The durable one that the run goes on from.
  std::function<void(const CheckpointOutcome&)> on_resumed = [](const CheckpointOutcome&) {};
  // A sentence for the user: resumed from, went back to.
  std::function<void(const std::string&)> on_note = [](const std::string&) {};
  // One that is never left out: what could not be written.
  std::function<void(const std::string&)> on_alarm = [](const std::string&) {};
  std::function<StopAsked()> stop = [] { return StopAsked::kNo; };
  // Which of the job's pods take part, the newest that is known; asked by several threads, for as
  // long as the run is there. Null: all, always.
  std::function<std::optional<MembershipView>()> view;
  // This pod waits for another one that is silent; said again while it is. Whoever makes views
  // may leave that one out.
  std::function<void(int64_t pod)> on_silent = [](int64_t) {};
  // The same of one that is heard, but so slow that the others have waited so long for it.
  std::function<void(int64_t pod, double seconds)> on_slow = [](int64_t, double) {};
};

struct TrainingResult {
  int64_t steps = 0;                     // done, those before this launch counted
  int64_t tokens = 0;                    // of this launch
  double first_loss = 0, last_loss = 0;  // of this launch, of steps that have one
  int64_t skipped = 0;                   // steps without an update, of the whole run
  int64_t rewinds = 0;
  StopAsked stopped = StopAsked::kNo;
  std::string checkpoint;  // the last one that is durable
};

class TrainingRun {
 public:
  // Makes the trainer, tokenises what is not yet in the cache (all ranks take their share), opens
  // the data and loads the newest checkpoint of plan.directory, if there is one. Collective; an
  // error is the same on all ranks. InvalidArgument: Validate's, a vocabulary that is not the
  // model's, data that ends before plan.steps or has nothing to predict. FailedPrecondition: a
  // checkpoint of another run, none as new as plan.committed_step (with other pods: on no pod that
  // begins), a directory that another run uses, or more memory than there is, with the smallest
  // change that fits. With other pods, `link` leads to them and outlives the run: it begins where
  // all have been, or, if it joins, where they are, and ends when one is asked to stop, behind the
  // same step on all.
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Create(
      std::unique_ptr<Communicator> world, std::shared_ptr<const ModelSource> source,
      std::shared_ptr<const Tokenizer> tokenizer, const TrainingPlan& plan,
      const TrainingEvents& events, ProgressBoard* board, PodLink* link = nullptr);

  // Steps until plan.steps are done or it is asked to stop; ends with a checkpoint. Aborted naming
  // the last one there is if this last one cannot be written; Cancelled after kCancel.
  absl::StatusOr<TrainingResult> Run();

  Trainer& trainer() { return *trainer_; }

 private:
  TrainingRun(const TrainingPlan& plan, const TrainingEvents& events, ProgressBoard* board);
  absl::Status OpenData(const ModelSource& source, const Tokenizer* tokenizer);
  absl::Status MakeBatches();
  absl::StatusOr<StepReport> Step();
  StopAsked Stop();
  // What a checkpoint holds, and the history that it is of (training_run_checkpoints.cc).
  absl::Status Lock();
  absl::Status OpenDirectory(const ModelSource& source);
  absl::Status Resume();
  bool HasCommitted(const std::vector<CheckpointEntry>& entries) const;
  absl::Status LacksCommitted(absl::string_view what) const;
  absl::Status Restore(const TrainingState& state);
  absl::Status RestoreExchange(const TrainingState& state);
  TrainingState State() const;
  absl::Status Save();
  absl::Status SaveLast();
  bool Saved() const;
  void Take(const std::optional<CheckpointOutcome>& outcome);
  void Wait();
  void Fork(int64_t branch);
  absl::StatusOr<std::vector<CheckpointEntry>> LoadableCheckpoints();
  // The spike rule (training_run_spike.cc).
  absl::Status JudgeLoss(const StepReport& report);
  bool OfThisHistory(const CheckpointEntry& entry) const;
  absl::StatusOr<std::vector<CheckpointEntry>> OwnCheckpoints();
  absl::Status GoBack(const Rewind& rewind, const std::string& checkpoint);
  // With other pods (training_run_pods.cc).
  PodAccess Pods(PodLink* link);
  absl::StatusOr<LoadedCheckpoint> LoadWithPods();
  absl::Status CheckPodsAlike();
  absl::Status JoinPods(PodLink* link);
  absl::Status ForkBehindOwn();
  absl::Status TakeIn();
  bool Hurries();
  void RecordMerges();
  absl::StatusOr<TrainingResult> EndWaiting(const absl::Status& why);
  std::vector<std::vector<int64_t>> OwnDocuments(const TrainBatch& batch);
  std::optional<StepReport::Pods> CountPods();
  bool speaks() const { return trainer_->mesh().rank() == 0; }
  void Note(const std::string& sentence) {
    if (speaks()) events_.on_note(sentence);
  }
  void Alarm(const std::string& sentence) {
    if (speaks()) events_.on_alarm(sentence);
  }
  std::string Checkpoints() const { return plan_.directory + "/checkpoints"; }

  const TrainingPlan plan_;
  const TrainingEvents events_;
  ProgressBoard* const board_;  // may be null
  std::unique_ptr<Trainer> trainer_;
  double peak_flops_ = 0;  // of all ranks
  // With other pods, of this rank: what reports have told so far.
  struct PodCounts {
    int64_t bytes_sent = 0, dropped = 0, reconnects = 0;
    double seconds_waited = 0;
  } counted_;
  TrainingTokens tokens_;
  std::unique_ptr<const Batches> batches_;
  int64_t end_ = 0;  // steps: plan_.steps, or fewer where batches were left out of finite data
  TickingFiles files_;
  std::optional<DirectoryLock> lock_;         // on rank 0
  std::unique_ptr<CheckpointWriter> writer_;  // null: nothing is written

  // What a checkpoint holds besides the store.
  int64_t step_ = 0, branch_ = 0;
  std::vector<double> forks_ = {0};  // by branch
  SkipList skip_list_;
  SkippedSteps skipped_;
  SpikeState spike_;
  TrainingResult result_;
};

}  // namespace toroid
