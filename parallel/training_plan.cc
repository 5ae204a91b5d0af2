#include "parallel/training_plan.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/model_config_json.h"
#include "core/status_macros.h"
#include "core/version.h"
#include "parallel/memory_plan.h"

namespace toroid {
namespace {

constexpr int64_t kMostPods = 1024;

// A spike can only be undone with a checkpoint that is old enough, so that is asked for at once: of
// `keep` checkpoints the newest may have been written just before the spike.
absl::Status CheckSpikeRule(const TrainingPlan& plan) {
  TOROID_RETURN_IF_ERROR(Validate(*plan.spike));
  if (plan.directory.empty() || plan.checkpoint_every < 1) {
    return absl::InvalidArgumentError(
        "spike rule: it goes back to checkpoints, and none are written while the run goes on; give "
        "a directory and a number of steps between checkpoints");
  }
  const int64_t reach = (plan.kept() - 1) * plan.checkpoint_every, asked = plan.spike->rewind_steps;
  if (reach >= asked) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("spike rule: it goes back ", asked, " steps, but ", plan.kept(),
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

std::string PodDirectory(const std::string& directory, int64_t pod, int64_t pods) {
  return pods == 1 || directory.empty() ? directory : absl::StrCat(directory, "/pod-", pod);
}

std::vector<std::string> PodTerms(const TrainingPlan& plan, const ModelConfig& model) {
  const TrainOptions& options = plan.options;
  std::vector<std::string> stages;
  for (const BatchRamp::Stage& stage : plan.data.batch_tokens.stages) {
    stages.push_back(absl::StrCat(stage.first_step, "+", stage.tokens));
  }
  const LearningRateSchedule& rate = options.optimizer.rate;
  // The version first: other differences may be its.
  std::vector<std::string> terms = {absl::StrCat("version: ", kVersion),
                                    absl::StrCat("exchange format: ", kExchangeFormat)};
  const nlohmann::json fields = ModelConfigJson(model);
  for (const auto& [name, value] : fields.items()) {
    terms.push_back(absl::StrCat("model ", name, ": ", value.dump()));
  }
  const std::vector<std::string> of_run = {
      absl::StrCat("pods: ", options.pods.count),
      absl::StrCat(
          "exchange: ", ToString(options.pods.exchange),
          options.pods.policy == PodsOptions::Policy::kContinue ? ", policy continue" : ""),
      absl::StrCat("steps: ", plan.steps),
      absl::StrCat("seed: ", plan.seed),
      absl::StrCat("sequence length: ", plan.data.sequence_length),
      absl::StrCat("batch tokens: ", absl::StrJoin(stages, " ")),
      absl::StrCat("order of documents: ", plan.data.shuffle ? "shuffled" : "as they come",
                   ", epochs ", plan.data.epochs, plan.data.join_documents ? ", joined" : ""),
      absl::StrCat("left out: ", plan.data.skipped.ToString()),
      absl::StrCat("compute: ", int(options.compute)),
      absl::StrCat("optimizer: ", int(options.optimizer.kind), " rate ", rate.peak, " schedule ",
                   int(rate.kind), " warmup ", rate.warmup, " final ", rate.final_rate),
      absl::StrCat("clip: ", options.max_norm),
      absl::StrCat("z-loss: ", options.zeta),
      absl::StrCat("dropout: ", options.dropout),
      absl::StrCat("checkpoints: ", plan.directory.empty() ? "none" : "every ",
                   plan.checkpoint_every),
  };
  terms.insert(terms.end(), of_run.begin(), of_run.end());
  return terms;
}

}  // namespace toroid
