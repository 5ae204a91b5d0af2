// The spike rule at work: which loss takes a run back, to which checkpoint of its own history.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/training_run.h"

namespace toroid {

// The loss after a step: a spike takes the run back, before what it did to the weights lasts.
absl::Status TrainingRun::JudgeLoss(const StepReport& report) {
  if (!plan_.spike || report.result.labels == 0) return absl::OkStatus();
  const SpikeVerdict verdict = Observe(*plan_.spike, report.result.loss, spike_);
  if (!verdict.spike) return absl::OkStatus();
  Wait();
  TOROID_ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries, OwnCheckpoints());
  std::vector<int64_t> steps;
  for (const CheckpointEntry& entry : entries) steps.push_back(entry.step);
  TOROID_ASSIGN_OR_RETURN(const Rewind rewind,
                          PlanRewind(*plan_.spike, spike_, report.result.step, steps,
                                     plan_.data.batch_tokens, skip_list_));
  Note(absl::StrCat("step ", report.result.step + 1, ": loss ", report.result.loss, " is above ",
                    verdict.threshold, " (median ", verdict.median, "): back to step ",
                    rewind.to_step, ", without the batches of steps ", rewind.first + 1, " to ",
                    rewind.end));
  if (rewind.missing > 0) {
    Note(absl::StrCat("step ", rewind.to_step, " is the oldest checkpoint, ", rewind.missing,
                      " steps younger than the spike rule asks for"));
  }
  const auto target =
      std::find_if(entries.begin(), entries.end(),
                   [&](const CheckpointEntry& entry) { return entry.step == rewind.to_step; });
  TOROID_CHECK(target != entries.end());
  return GoBack(rewind, target->name);
}

// Branch b of a run began at step forks_[b], with what the branches before it had made until then;
// -1: it belongs to a history that was left.
bool TrainingRun::OfThisHistory(const CheckpointEntry& entry) const {
  if (entry.kind != CheckpointEntry::Kind::kWhole) return false;
  if (entry.branch > branch_ || forks_[entry.branch] < 0) return false;
  for (int64_t later = entry.branch + 1; later <= branch_; ++later) {
    if (forks_[later] >= 0 && entry.step > forks_[later]) return false;
  }
  return true;
}

// Those that this run can go back to.
absl::StatusOr<std::vector<CheckpointEntry>> TrainingRun::OwnCheckpoints() {
  TOROID_ASSIGN_OR_RETURN(std::vector<CheckpointEntry> entries, LoadableCheckpoints());
  std::erase_if(entries, [this](const CheckpointEntry& entry) { return !OfThisHistory(entry); });
  return entries;
}

absl::Status TrainingRun::GoBack(const Rewind& rewind, const std::string& checkpoint) {
  const int64_t branch = branch_ + 1;
  TOROID_ASSIGN_OR_RETURN(const LoadedCheckpoint loaded,
                          LoadCheckpoint(absl::StrCat(Checkpoints(), "/", checkpoint),
                                         trainer_->config(), trainer_->store(), files_));
  TOROID_RETURN_IF_ERROR(Restore(loaded.state));
  Fork(branch);
  skip_list_ = rewind.skipped;
  spike_.rewinds = rewind.rewinds;
  TOROID_RETURN_IF_ERROR(MakeBatches());
  // Durable before the next step: a run killed later must not meet the window again. If the disk
  // will not have it, such a run will go back once more.
  TOROID_RETURN_IF_ERROR(Save());
  Wait();
  return trainer_->mesh().Health();
}

}  // namespace toroid
