// What a run writes to go on from, and how it begins there: the directory and its lock, what a
// checkpoint holds besides the store, and the branches of its history.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/io/model_origin.h"
#include "core/status_macros.h"
#include "core/version.h"
#include "parallel/checkpoint_lost.h"
#include "parallel/host_exchange.h"
#include "parallel/progress_board.h"
#include "parallel/training_run.h"

namespace toroid {
namespace {

// Names of what a checkpoint keeps for a run, in TrainingState::numbers and texts.
constexpr char kUpdates[] = "updates", kSkippedSteps[] = "skipped steps";
constexpr char kSpikeLosses[] = "spike losses", kRewinds[] = "rewinds", kForks[] = "forks";
constexpr char kNoise[] = "noise scale", kList[] = "token list", kDropout[] = "dropout";
constexpr char kExchange[] = "exchange";
constexpr char kOptimizer[] = "optimizer", kAdamW[] = "adamw";  // also of those that do not say

double Number(const TrainingState& state, const char* name, size_t i) {
  const auto found = state.numbers.find(name);
  return found != state.numbers.end() && i < found->second.size() ? found->second[i] : 0;
}

// What the moments are of; an optimizer would take another's for its own.
std::string OptimizerText(const TrainOptions& options) {
  return options.optimizer.kind == OptimizerSpec::Kind::kAdamW ? kAdamW : "adafactor";
}

// What dropout draws: a run that goes on with other draws, or another rate, is another run.
std::string DropoutText(const TrainOptions& options) {
  if (options.dropout == 0) return "none";
  return absl::StrCat("rate ", options.dropout, ", seed ", options.dropout_seed);
}

// What a checkpoint's gradients on their way or outer weights are of.
std::string ExchangeText(const TrainOptions& options) {
  return absl::StrCat(options.pods.count, " pods, ", ToString(options.pods.exchange));
}

}  // namespace

// Two runs in one directory would take each other's checkpoints for their own.
absl::Status TrainingRun::Lock() {
  absl::Status locked;
  if (speaks()) {
    locked = CreateDirectories(files_, plan_.directory);
    if (locked.ok()) {
      absl::StatusOr<DirectoryLock> lock = DirectoryLock::Take(plan_.directory);
      locked = lock.status();
      if (lock.ok()) lock_.emplace(*std::move(lock));
    }
    // Checkpoints that cannot be written stop no training; here nothing says that another is at it.
    if (!locked.ok() && !absl::IsFailedPrecondition(locked)) {
      Alarm(std::string(locked.message()));
      locked = absl::OkStatus();
    }
  }
  return ShareStatus(trainer_->mesh().world(), locked);
}

absl::Status TrainingRun::OpenDirectory(const ModelSource& source) {
  TOROID_RETURN_IF_ERROR(Lock());
  CheckpointOptions options;
  options.directory = Checkpoints();
  options.keep = plan_.kept();
  options.epoch = plan_.epoch;
  TOROID_ASSIGN_OR_RETURN(options.origin, OriginText(source));
  if (plan_.options.pods.count > 1) {
    options.also = PodExchange::StateNames(plan_.options.pods.exchange);
  }
  TOROID_ASSIGN_OR_RETURN(
      writer_, CheckpointWriter::Create(trainer_->store(), trainer_->config(), options, files_));
  return absl::OkStatus();
}

// Damaged ones count: what is left of them is told as they are refused.
bool TrainingRun::HasCommitted(const std::vector<CheckpointEntry>& entries) const {
  return plan_.committed_step == 0 ||
         std::any_of(entries.begin(), entries.end(), [this](const CheckpointEntry& entry) {
           return entry.step >= plan_.committed_step || entry.branch > plan_.committed_branch;
         });
}

// A run that began all the same would do its steps again, or lose them, and nobody would know.
absl::Status TrainingRun::LacksCommitted(absl::string_view what) const {
  return CheckpointLost(absl::StrCat(
      "checkpoint lost: the job has committed one of step ", plan_.committed_step, ", ", what,
      ": copy it there, or run where it lies (pod, or an output_dir that all hosts share); to go "
      "on without it submit the job anew"));
}

absl::Status TrainingRun::Resume() {
  if (board_ != nullptr) board_->At("resume");
  const bool alone = trainer_->exchange() == nullptr;
  if (alone && plan_.committed_step > 0) {
    TOROID_ASSIGN_OR_RETURN(const auto entries, LoadableCheckpoints());
    if (!HasCommitted(entries)) {
      return LacksCommitted(absl::StrCat(
          Checkpoints(),
          entries.empty() ? " has none" : absl::StrCat(" ends with ", entries[0].name)));
    }
  }
  const absl::StatusOr<LoadedCheckpoint> loaded =
      alone ? LoadNewestCheckpoint(Checkpoints(), trainer_->config(), trainer_->store(), files_)
            : LoadWithPods();
  if (absl::IsNotFound(loaded.status())) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(loaded.status());
  for (const std::string& refused : loaded->refused) Note(refused);
  TOROID_RETURN_IF_ERROR(Restore(loaded->state));
  result_.checkpoint = loaded->path;
  if (!loaded->refused.empty()) {  // newer ones that do not count: their history is left here
    Communicator& world = trainer_->mesh().world();
    int64_t newest = branch_;
    if (speaks()) {
      const auto entries = ListCheckpoints(files_, Checkpoints());
      for (const CheckpointEntry& entry : entries.value_or(std::vector<CheckpointEntry>())) {
        if (entry.branch < kMostBranches) newest = std::max(newest, entry.branch);
      }
    }
    Fork(GatherHost(world, newest)[0] + 1);
  }
  Note(absl::StrCat("resumed from ", loaded->path, ", written on ", ToString(loaded->mesh)));
  CheckpointOutcome from;
  from.step = step_;
  from.path = loaded->path;
  from.hash = loaded->hash;
  events_.on_resumed(from);
  return absl::OkStatus();
}

absl::Status TrainingRun::Restore(const TrainingState& state) {
  if (state.branch >= kMostBranches) {
    return absl::DataLossError(absl::StrCat("checkpoint of step ", state.step, ": branch ",
                                            state.branch, " is not possible"));
  }
  step_ = state.step;
  branch_ = state.branch;
  const auto forks = state.numbers.find(kForks);
  forks_ = forks == state.numbers.end() ? std::vector<double>() : forks->second;
  forks_.resize(size_t(branch_) + 1, 0);
  skip_list_ = state.skipped;
  for (const SkipList::Window& window : plan_.data.skipped.windows()) {
    skip_list_.Skip(window.begin, window.end);  // one behind us is refused below
  }
  skipped_.total = int64_t(Number(state, kSkippedSteps, 0));
  skipped_.in_a_row = int64_t(Number(state, kSkippedSteps, 1));
  spike_.rewinds = int64_t(Number(state, kRewinds, 0));
  const auto losses = state.numbers.find(kSpikeLosses);
  spike_.losses = losses == state.numbers.end() ? std::vector<double>() : losses->second;
  GradientNoiseScale noise = trainer_->noise();
  noise.gradient = Number(state, kNoise, 0);
  noise.trace = Number(state, kNoise, 1);
  noise.weight = Number(state, kNoise, 2);
  trainer_->Restore(int64_t(Number(state, kUpdates, 0)), noise);
  TOROID_RETURN_IF_ERROR(MakeBatches());
  const auto list = state.texts.find(kList);
  // A model that was converted: its weights are where any run may begin.
  if (state.step == 0 && list == state.texts.end()) return RestoreExchange(state);
  if (state.seed != plan_.seed || list == state.texts.end() ||
      list->second != absl::StrCat(batches_->list_fingerprint())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint of step ", state.step,
        " was trained on other data, or with another seed: give those again, or another output "
        "directory"));
  }
  const auto optimizer = state.texts.find(kOptimizer);
  const std::string moments = optimizer == state.texts.end() ? kAdamW : optimizer->second;
  if (moments != OptimizerText(plan_.options)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint of step ", state.step, " has the moments of ", moments, ", not of ",
        OptimizerText(plan_.options), ": give that again, or another output directory"));
  }
  const auto dropout = state.texts.find(kDropout);
  const std::string drawn = dropout == state.texts.end() ? "none" : dropout->second;
  if (drawn != DropoutText(plan_.options)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint of step ", state.step, " was trained with dropout ", drawn, ", not ",
        DropoutText(plan_.options), ": give that again, or another output directory"));
  }
  TOROID_RETURN_IF_ERROR(RestoreExchange(state));
  return batches_->CheckPosition(state.step, state.data_position);
}

// REQUIRES: what the checkpoint has of it was loaded.
absl::Status TrainingRun::RestoreExchange(const TrainingState& state) {
  PodExchange* pods = trainer_->exchange();
  if (pods == nullptr) return absl::OkStatus();
  const auto text = state.texts.find(kExchange);
  const auto numbers = state.numbers.find(kExchange);
  if (text == state.texts.end() || numbers == state.numbers.end()) {
    if (plan_.joins) return absl::DataLossError("what was given has nothing of the exchange");
    return pods->BeginHere();  // of a run on one pod
  }
  if (text->second != ExchangeText(plan_.options)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint of step ", state.step, " was trained by ", text->second, ", not by ",
        ExchangeText(plan_.options), ": give that again, or another output directory"));
  }
  return plan_.joins ? pods->RestoreJoined(numbers->second) : pods->Restore(numbers->second);
}

TrainingState TrainingRun::State() const {
  TrainingState state;
  state.step = step_;
  state.branch = branch_;
  // Also behind the end of the data, where more epochs go on.
  state.data_position = skip_list_.At(plan_.data.batch_tokens.TokensBefore(step_));
  state.seed = plan_.seed;
  state.skipped = skip_list_;
  state.numbers[kUpdates] = {double(trainer_->updates())};
  state.numbers[kSkippedSteps] = {double(skipped_.total), double(skipped_.in_a_row)};
  state.numbers[kSpikeLosses] = spike_.losses;
  state.numbers[kRewinds] = {double(spike_.rewinds)};
  state.numbers[kForks] = forks_;
  const GradientNoiseScale& noise = trainer_->noise();
  state.numbers[kNoise] = {noise.gradient, noise.trace, noise.weight};
  state.texts[kList] = absl::StrCat(batches_->list_fingerprint());
  state.texts[kWriterText] = kVersion;
  state.texts[kOptimizer] = OptimizerText(plan_.options);
  state.texts[kDropout] = DropoutText(plan_.options);
  if (const PodExchange* pods = trainer_->exchange()) {
    state.numbers[kExchange] = pods->numbers();
    state.texts[kExchange] = ExchangeText(plan_.options);
  }
  return state;
}

// A checkpoint that cannot be written stops no training: it is an alarm, and the last good one
// stays.
absl::Status TrainingRun::Save() {
  if (writer_ == nullptr) return absl::OkStatus();
  Wait();
  if (Saved()) return trainer_->mesh().Health();
  std::vector<HostKind> also;
  if (PodExchange* pods = trainer_->exchange()) {
    TOROID_ASSIGN_OR_RETURN(also, pods->State());
    pods->SyncRecord();
  }
  const absl::Status begun = writer_->Save(State(), also);
  if (!begun.ok()) Alarm(absl::StrCat("no checkpoint of step ", step_, ": ", begun.message()));
  return trainer_->mesh().Health();
}

bool TrainingRun::Saved() const {
  return result_.checkpoint == absl::StrCat(Checkpoints(), "/", CheckpointName(step_, branch_));
}

// No later one will make up for this: it is tried twice, and then the run has failed.
absl::Status TrainingRun::SaveLast() {
  if (writer_ == nullptr) return absl::OkStatus();
  for (int attempt = 0; attempt < 2; ++attempt) {
    TOROID_RETURN_IF_ERROR(Save());
    Wait();
    TOROID_RETURN_IF_ERROR(trainer_->mesh().Health());
    if (Saved()) return absl::OkStatus();
  }
  return absl::AbortedError(
      absl::StrCat("the checkpoint of step ", step_, ", the run's last, cannot be written: ",
                   result_.checkpoint.empty()
                       ? absl::StrCat("nothing is kept in ", Checkpoints())
                       : absl::StrCat("the weights are kept no further than ", result_.checkpoint),
                   ": free space there, then start the same command again"));
}

// Until what is being written is there.
void TrainingRun::Wait() {
  if (board_ != nullptr) board_->At("checkpoint");
  Take(writer_->Wait());
}

void TrainingRun::Take(const std::optional<CheckpointOutcome>& outcome) {
  if (!outcome) return;
  if (outcome->status.ok()) {
    result_.checkpoint = outcome->path;
  } else {
    Alarm(absl::StrCat("no checkpoint of step ", outcome->step, ": ", outcome->status.message()));
  }
  if (!outcome->removal.ok()) Alarm(std::string(outcome->removal.message()));
  if (speaks()) events_.on_checkpoint(*outcome);
}

// Begins a branch here, behind all that were there.
void TrainingRun::Fork(int64_t branch) {
  forks_.resize(size_t(branch), -1);
  forks_.push_back(double(step_));
  branch_ = branch;
}

// All that can be loaded, newest first. Rank 0's list counts.
absl::StatusOr<std::vector<CheckpointEntry>> TrainingRun::LoadableCheckpoints() {
  Communicator& world = trainer_->mesh().world();
  absl::StatusOr<std::vector<CheckpointEntry>> all = std::vector<CheckpointEntry>();
  if (speaks()) all = ListCheckpoints(files_, Checkpoints());
  TOROID_RETURN_IF_ERROR(ShareStatus(world, all.status()));
  std::vector<std::string> names;
  for (const CheckpointEntry& entry : Loadable(std::move(*all))) {
    names.push_back(entry.name);
  }
  const std::string text = BroadcastText(world, absl::StrJoin(names, "/"));
  TOROID_RETURN_IF_ERROR(world.Health());
  std::vector<CheckpointEntry> entries;
  for (const absl::string_view name : absl::StrSplit(text, '/', absl::SkipEmpty())) {
    TOROID_CHECK(ParseCheckpointName(name, entries.emplace_back()));
  }
  return entries;
}

}  // namespace toroid
