#include "parallel/training_run.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/io/model_origin.h"
#include "core/status_macros.h"
#include "core/version.h"
#include "parallel/device.h"
#include "parallel/host_exchange.h"
#include "parallel/host_memory.h"
#include "parallel/launcher_environment.h"
#include "parallel/memory_plan.h"
#include "parallel/param_hash.h"
#include "parallel/progress_board.h"

namespace toroid {
namespace {

// Names of what a checkpoint keeps for a run, in TrainingState::numbers and texts.
constexpr char kUpdates[] = "updates", kSkippedSteps[] = "skipped steps";
constexpr char kSpikeLosses[] = "spike losses", kRewinds[] = "rewinds", kForks[] = "forks";
constexpr char kNoise[] = "noise scale", kList[] = "token list", kDropout[] = "dropout";
constexpr char kExchange[] = "exchange";
constexpr char kOptimizer[] = "optimizer", kAdamW[] = "adamw";  // also of those that do not say

constexpr int64_t kMostPods = 1024;
double Number(const TrainingState& state, const char* name, size_t i) {
  const auto found = state.numbers.find(name);
  return found != state.numbers.end() && i < found->second.size() ? found->second[i] : 0;
}

// The newest may turn out to be damaged.
int64_t Kept(const TrainingPlan& plan) { return std::max<int64_t>(2, plan.keep); }

// A spike can only be undone with a checkpoint that is old enough, so that is asked for at once: of
// `keep` checkpoints the newest may have been written just before the spike.
absl::Status CheckSpikeRule(const TrainingPlan& plan) {
  TOROID_RETURN_IF_ERROR(Validate(*plan.spike));
  if (plan.directory.empty() || plan.checkpoint_every < 1) {
    return absl::InvalidArgumentError(
        "spike rule: it goes back to checkpoints, and none are written while the run goes on; give "
        "a directory and a number of steps between checkpoints");
  }
  const int64_t reach = (Kept(plan) - 1) * plan.checkpoint_every, asked = plan.spike->rewind_steps;
  if (reach >= asked) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("spike rule: it goes back ", asked, " steps, but ", Kept(plan),
                   " checkpoints, one every ", plan.checkpoint_every, " steps, reach back ", reach,
                   "; keep ", (asked + plan.checkpoint_every - 1) / plan.checkpoint_every + 1));
}

absl::Status CheckPods(const TrainingPlan& plan) {
  const PodsOptions& pods = plan.options.pods;
  if (pods.count < 1 || pods.count > kMostPods) {
    return absl::InvalidArgumentError(
        absl::StrCat("pods: ", pods.count, ", must be 1 to ", kMostPods));
  }
  if (pods.count == 1) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(Validate(pods.exchange));
  if (plan.spike) {
    return absl::InvalidArgumentError(
        "spike rule: a run of several pods cannot go back; leave the rule out, or train on one "
        "pod");
  }
  if (plan.options.noise_scale_every > 0 && pods.exchange.mode == ExchangeSpec::Mode::kDelayed) {
    return absl::InvalidArgumentError(
        "noise scale: with the exchange `delayed` a step has two gradients; measure it with "
        "another");
  }
  return absl::OkStatus();
}

// The scale compares the gradient of a part of the batch with that of all of it, and a part is at
// least one sequence.
absl::Status CheckNoiseScale(const TrainingPlan& plan) {
  if (plan.options.noise_scale_every == 0) return absl::OkStatus();
  for (const BatchRamp::Stage& stage : plan.data.batch_tokens.stages) {
    if (stage.tokens > plan.data.sequence_length) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "noise scale: asked for every ", plan.options.noise_scale_every,
      " steps, but it compares a part of a batch with the whole, and every batch is one sequence "
      "of ",
      plan.data.sequence_length, " tokens; take a batch of ", 2 * plan.data.sequence_length,
      " tokens or more, shorter sequences, or 0 for none"));
}

// Collective; the same answer on every rank, since ranks may have hosts of different size.
absl::Status CheckMemory(Communicator& world, const TrainingPlan& plan,
                         const std::shared_ptr<const ModelSource>& source) {
  int64_t limit = plan.memory_limit;
  const bool on_gpus = OnGpus(world, plan.options.device, plan.options.compute);
  if (limit == 0) {
    if (on_gpus) return absl::OkStatus();
    const int64_t own = FreeMemory().value_or(INT64_MAX) / HostsOf(world).local_size;
    const std::vector<int64_t> shares = GatherHost(world, own);
    limit = *std::min_element(shares.begin(), shares.end());
  }
  absl::Status fits;
  if (world.rank() == 0) {
    PlannedTraining job{plan.options, plan.data.sequence_length, 0, !plan.directory.empty()};
    for (const BatchRamp::Stage& stage : plan.data.batch_tokens.stages) {
      job.batch_tokens = std::max(job.batch_tokens, stage.tokens);
      job.batch_unit = std::gcd(job.batch_unit, stage.tokens);
    }
    job.of_spec = true;
    job.options.device = on_gpus ? Device::kCuda : Device::kCpu;
    fits = CheckFits(source, job, limit);
  }
  return ShareStatus(world, fits);
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

absl::Status Validate(const TrainingPlan& plan, const ModelConfig& model, int64_t ranks) {
  TOROID_RETURN_IF_ERROR(Validate(plan.options, model, ranks));
  const TrainingData& data = plan.data;
  if (data.sequence_length < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence length: ", data.sequence_length, ", must be at least 1"));
  }
  TOROID_RETURN_IF_ERROR(CheckPositions(model, data.sequence_length));
  TOROID_RETURN_IF_ERROR(Validate(data.batch_tokens, data.sequence_length));
  TOROID_RETURN_IF_ERROR(CheckNoiseScale(plan));
  TOROID_RETURN_IF_ERROR(Validate(data.documents));
  if (plan.steps < 0) return absl::InvalidArgumentError(absl::StrCat("steps: ", plan.steps));
  if (plan.keep < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoints to keep: ", plan.keep, ", must be at least 1"));
  }
  if (plan.checkpoint_every < 0 || plan.skip_limit < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps between checkpoints: ", plan.checkpoint_every,
                     ", skipped in a row: ", plan.skip_limit, "; neither can be negative"));
  }
  if (plan.param_hash_every < 0 || plan.memory_limit < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps between hashes of the weights: ", plan.param_hash_every,
                     ", bytes of a rank: ", plan.memory_limit, "; neither can be negative"));
  }
  TOROID_RETURN_IF_ERROR(CheckPods(plan));
  return plan.spike ? CheckSpikeRule(plan) : absl::OkStatus();
}

TrainingRun::TrainingRun(const TrainingPlan& plan, const TrainingEvents& events,
                         ProgressBoard* board)
    : plan_(plan),
      events_(events),
      board_(board),
      files_(PosixFiles(), board != nullptr ? board->ticks() : nullptr) {}

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Create(
    std::unique_ptr<Communicator> world, std::shared_ptr<const ModelSource> source,
    std::shared_ptr<const Tokenizer> tokenizer, const TrainingPlan& plan,
    const TrainingEvents& events, ProgressBoard* board, PodLink* link) {
  TOROID_RETURN_IF_ERROR(Validate(plan, source->config, world->size()));
  if (plan.options.pods.count > 1 && link == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("mesh.pods: ", plan.options.pods.count, ": nothing leads to the other pods"));
  }
  TOROID_RETURN_IF_ERROR(CheckSources(*world, plan.data));
  TOROID_RETURN_IF_ERROR(CheckMemory(*world, plan, source));
  std::unique_ptr<TrainingRun> run(new TrainingRun(plan, events, board));
  run->skip_list_ = plan.data.skipped;
  TOROID_ASSIGN_OR_RETURN(run->trainer_, Trainer::Create(std::move(world), source, plan.options,
                                                         board, Rounds, run->Pods(link)));
  const TrainOptions& options = plan.options;
  run->peak_flops_ =
      PeakFlops(run->trainer_->mesh().world(),
                {options.device, options.compute, options.share_gpus, options.threads});
  TOROID_RETURN_IF_ERROR(run->OpenData(*source, tokenizer.get()));
  TOROID_RETURN_IF_ERROR(run->MakeBatches());
  if (!plan.directory.empty()) TOROID_RETURN_IF_ERROR(run->OpenDirectory(*source));
  if (plan.joins) {
    TOROID_RETURN_IF_ERROR(run->JoinPods(link));
  } else {
    if (!plan.directory.empty()) TOROID_RETURN_IF_ERROR(run->Resume());
    if (run->trainer_->exchange() != nullptr) TOROID_RETURN_IF_ERROR(run->CheckPodsAlike());
  }
  if (run->trainer_->exchange() != nullptr) run->RecordMerges();
  if (plan.joins) TOROID_RETURN_IF_ERROR(run->Save());
  return run;
}

// --- data ---------------------------------------------------------------------------------------

absl::Status TrainingRun::OpenData(const ModelSource& source, const Tokenizer* tokenizer) {
  const auto progress = [&](const TokenCacheProgress& done) {
    events_.on_tokenised(done);
    return events_.stop() == StopAsked::kNo;
  };
  TOROID_ASSIGN_OR_RETURN(tokens_, OpenTokens(trainer_->mesh().world(), source, tokenizer,
                                              plan_.data, progress, board_));
  return absl::OkStatus();
}

absl::Status TrainingRun::MakeBatches() {
  TOROID_ASSIGN_OR_RETURN(batches_, BatchesOf(tokens_, plan_.data, plan_.seed, skip_list_));
  const std::optional<int64_t> lasts = batches_->steps();
  const int64_t end = std::min(plan_.steps, lasts.value_or(plan_.steps));
  if (end == std::exchange(end_, end) || end == plan_.steps) return absl::OkStatus();
  if (spike_.rewinds > 0) {  // there was enough before batches were left out
    Note(absl::StrCat("the data ends after ", end, " of ", plan_.steps,
                      " steps, without the batches that spiked: the run ends there"));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("the data ends after ", *lasts, " of ",
                                                 plan_.steps,
                                                 " steps; allow more epochs or fewer steps"));
}

// --- checkpoints --------------------------------------------------------------------------------

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
  options.keep = Kept(plan_);
  options.epoch = plan_.epoch;
  TOROID_ASSIGN_OR_RETURN(options.origin, OriginText(source));
  if (plan_.options.pods.count > 1) {
    options.also = PodExchange::StateNames(plan_.options.pods.exchange);
  }
  TOROID_ASSIGN_OR_RETURN(
      writer_, CheckpointWriter::Create(trainer_->store(), trainer_->config(), options, files_));
  return absl::OkStatus();
}

absl::Status TrainingRun::Resume() {
  if (board_ != nullptr) board_->At("resume");
  const bool alone = trainer_->exchange() == nullptr;
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

// --- steps --------------------------------------------------------------------------------------

absl::StatusOr<StepReport> TrainingRun::Step() {
  const auto start = std::chrono::steady_clock::now();
  TOROID_ASSIGN_OR_RETURN(TrainBatch packs, BatchOfStep(*batches_, step_));
  StepReport report;
  const bool hurries = Hurries();
  if (hurries) packs.documents.clear();
  const std::optional<double> waited = trainer_->exposed_seconds();
  TOROID_ASSIGN_OR_RETURN(report.result, trainer_->Step(step_, packs));
  if (waited) report.exposed_seconds = *trainer_->exposed_seconds() - *waited;
  report.pods = CountPods();
  if (report.pods) report.pods->hurried = hurries;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.tokens_per_s = double(report.result.tokens) / report.seconds;
  report.peak_bytes = trainer_->peak_bytes() + (writer_ == nullptr ? 0 : writer_->host_bytes());
  report.flops =
      FlopsOf(trainer_->config(), trainer_->layers(), plan_.options.remat, OwnDocuments(packs));
  report.peak_flops = peak_flops_;
  const int64_t hash_every = plan_.param_hash_every;
  if (hash_every > 0 && (step_ + 1) % hash_every == 0) {
    report.param_hash = ParamHash(trainer_->store());
    if (report.pods && !plan_.options.pods.exchange.gradients()) {
      report.pods->outer_hash = trainer_->exchange()->CommonHash();
    }
  }
  return report;
}

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

StopAsked TrainingRun::Stop() {
  Mesh& mesh = trainer_->mesh();
  const StopAsked own = speaks() ? events_.stop() : StopAsked::kNo;
  const StopAsked asked = StopAsked(mesh.Agree(int64_t(own)));
  PodExchange* pods = trainer_->exchange();
  if (pods == nullptr || asked == StopAsked::kCancel) return asked;
  pods->Say(int64_t(asked));  // with this step: all pods end behind it
  return StopAsked(pods->heard());
}

absl::StatusOr<TrainingResult> TrainingRun::Run() {
  // The spike rule can only go back to what was written.
  if (step_ == 0 && plan_.spike) TOROID_RETURN_IF_ERROR(Save());
  bool first = true;
  while (step_ < end_) {
    result_.stopped = Stop();
    TOROID_RETURN_IF_ERROR(trainer_->mesh().Health());
    if (result_.stopped == StopAsked::kCancel) {
      if (writer_ != nullptr) Wait();
      return absl::CancelledError("cancelled");
    }
    if (result_.stopped != StopAsked::kNo) break;
    const absl::StatusOr<StepReport> stepped = Step();
    if (absl::IsCancelled(stepped.status())) return EndWaiting(stepped.status());
    TOROID_RETURN_IF_ERROR(stepped.status());
    const StepReport& report = *stepped;
    const StepResult& step = report.result;
    if (speaks()) events_.on_step(report);
    TOROID_RETURN_IF_ERROR(skipped_.Count(step_, {step.grad_norm, 1, step.skipped.empty()},
                                          step.skipped, plan_.skip_limit));
    if (step.labels > 0) {
      if (first) result_.first_loss = step.loss;
      first = false;
      result_.last_loss = step.loss;
    }
    result_.tokens += step.tokens;
    ++step_;
    const int64_t done = step_;
    TOROID_RETURN_IF_ERROR(JudgeLoss(report));
    PodExchange* const pods = trainer_->exchange();
    // A run that was told to end does so behind this step.
    if (pods != nullptr && pods->comes() && step_ < end_ && pods->heard() == 0) {
      const absl::Status taken = TakeIn();
      if (absl::IsCancelled(taken)) return EndWaiting(taken);
      TOROID_RETURN_IF_ERROR(taken);
    }
    const bool due = plan_.checkpoint_every > 0 && step_ % plan_.checkpoint_every == 0;
    if (writer_ != nullptr) Take(writer_->Poll());
    if (due && step_ == done && step_ < end_) TOROID_RETURN_IF_ERROR(Save());
  }
  TOROID_RETURN_IF_ERROR(SaveLast());
  result_.steps = step_;
  result_.skipped = skipped_.total;
  result_.rewinds = spike_.rewinds;
  return result_;
}

}  // namespace toroid
