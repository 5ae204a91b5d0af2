// toroid score: the loss of a text and the logits behind its last token.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/client.h"
#include "launcher/interrupt.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/summary.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "rpc/prompt.h"

namespace toroid {
namespace {

constexpr char kLayout[] = "zigzag";  // balances causal attention over the ring

absl::Status Print(const Arguments& arguments, const absl::StatusOr<ScoreResult>& result) {
  if (!result.ok()) return Interrupt::ReasonOr(result.status());
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(ScoreJson(arguments.Text("MODEL"), *result), "\n"));
  } else {
    std::string text = absl::StrFormat("tokens %d  mean nll %.6f  perplexity %.4f\n",
                                       result->tokens, result->mean_nll, result->perplexity);
    std::vector<std::vector<std::string>> rows = {{"next token", "logit", "log p"}};
    for (const auto& [id, logit] : result->last_top) {
      rows.push_back({absl::StrCat(id), absl::StrFormat("%.5f", logit),
                      absl::StrFormat("%.5f", logit - result->last_logsumexp)});
    }
    if (rows.size() > 1) absl::StrAppend(&text, Table(rows, ColourStdout()));
    WriteStdout(text);
  }
  if (VerboseOption(arguments)) TalkLines(RunDetails(result->report));
  if (!arguments.Flag("--quiet")) Talk(ScoreSummary(*result));
  return absl::OkStatus();
}

ScoreRequest Request(const Arguments& arguments) {
  ScoreRequest request;
  request.top = arguments.Count("--top");
  request.logprobs = arguments.Flag("--logprobs");
  return request;
}

absl::Status OnRanks(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(DirectRun run, DirectOptions(arguments, kLayout));
  TOROID_ASSIGN_OR_RETURN(const PromptSpec prompt, PromptOfRankZero(arguments));
  const size_t limit = static_cast<size_t>(arguments.Count("--limit"));
  ProgressMeter meter(ProgressOption(arguments));
  run.request = [&, load = run.load](const LoadedModel& model) -> absl::StatusOr<Program> {
    meter.Clear();
    if (VerboseOption(arguments)) TalkLines(WorldDetails(load, model));
    Program program;
    program.kind = ProgramKind::kScore;
    program.score = Request(arguments);
    TOROID_ASSIGN_OR_RETURN(program.score.ids, PromptIds(prompt, prompt.text, model));
    if (limit > 0 && program.score.ids.size() > limit) program.score.ids.resize(limit);
    return program;
  };
  absl::Status answered = absl::OkStatus();
  run.channel.on_progress = [&](uint64_t, const Progress& p) { meter.Update(p); };
  run.channel.on_scored = [&](uint64_t, const absl::StatusOr<ScoreResult>& result) {
    meter.Clear();
    answered = Print(arguments, result);
  };
  TOROID_RETURN_IF_ERROR(RunDirect(std::move(run)));
  return answered;
}

absl::Status ThroughController(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(InferenceRequest request, InferenceOptions(arguments, kLayout));
  ScoreTask task;
  task.request = Request(arguments);
  task.limit = arguments.Count("--limit");
  TOROID_ASSIGN_OR_RETURN(task.text, PromptOptions(arguments, /*keep_files=*/true));
  request.task = std::move(task);
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  return Print(arguments, client->Score(request));
}

absl::Status RunScore(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const std::string controller, ControllerOption(arguments));
  return controller.empty() ? OnRanks(arguments) : ThroughController(arguments);
}

const OptionTable kScoreOptions = {
    "scoring",
    {
        {"--limit", ValueKind::kCount, "N", "0", "the first N tokens only; 0: all"},
        {"--top", ValueKind::kCount, "K", "0", "the K largest logits behind the last token"},
        {"--logprobs", ValueKind::kFlag, "", "", "log-probability of every token, in the JSON"},
    }};

}  // namespace

const Verb kScoreVerb = {
    .name = "score",
    .summary = "loss of a text and the logits behind its last token",
    .positionals = {{"MODEL", true, "a model directory, a GGUF file, a checkpoint or random:NAME"}},
    .tables = {&kPromptOptions, &kScoreOptions, &kModelOptions, &kMeshOptions, &kRunOptions,
               &kControllerOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid score /models/smollm2 --file /usr/share/common-licenses/GPL-3 --limit 1021 --top "
        "5\n"
        "toroid launch -n 2 score random:tiny-gqa --prompt-ids 1,2,3 -o json",
    .run = RunScore,
};

}  // namespace toroid
