#include "parallel/training_run.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/device.h"
#include "parallel/host_exchange.h"
#include "parallel/host_memory.h"
#include "parallel/launcher_environment.h"
#include "parallel/memory_plan.h"
#include "parallel/param_hash.h"
#include "parallel/progress_board.h"

namespace toroid {
namespace {

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

}  // namespace

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
