// toroid generate: a prompt in, tokens out, on the ranks here or through a controller.
#include "absl/strings/str_cat.h"
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

constexpr char kLayout[] = "striped:16";  // whose owner depends on the position alone

// Where the answer goes: tokens as they come, or one object at the end; talk on stderr.
class Printer {
 public:
  explicit Printer(const Arguments& arguments)
      : model_(arguments.Text("MODEL")),
        json_(JsonOption(arguments)),
        stream_(!json_ && !arguments.Flag("--no-stream")),
        quiet_(arguments.Flag("--quiet")),
        verbose_(VerboseOption(arguments)),
        meter_(ProgressOption(arguments)) {}

  void OnProgress(const Progress& progress) {
    const bool decode = absl::string_view(progress.phase) == "decode";
    if (decode && stream_) return;  // the text itself is the progress
    meter_.Update(progress);
  }

  void OnToken(const TokenEvent& token) {
    if (!stream_) return;
    meter_.Clear();
    WriteStdout(token.text);
    streamed_ += token.text;
  }

  void OnAccepted(const LoadRequest& load, const Accepted& accepted) {
    if (quiet_) return;
    meter_.Clear();
    Talk(AcceptedLine(accepted));
    Detail(WorldDetails(load, accepted.mesh, {}));
  }

  // Of a world, with -v.
  void Detail(const std::vector<std::string>& lines) {
    if (!verbose_) return;
    meter_.Clear();
    TalkLines(lines);
  }

  absl::Status Finish(const absl::StatusOr<GenerateResult>& result) {
    meter_.Clear();
    if (!result.ok()) {
      if (!streamed_.empty()) WriteStdout("\n");
      return Interrupt::ReasonOr(result.status());
    }
    if (json_) {
      WriteStdout(absl::StrCat(GenerateJson(model_, *result), "\n"));
    } else if (stream_) {
      // What the stream still owes: text that became complete only at the end.
      if (result->text.size() > streamed_.size() &&
          result->text.compare(0, streamed_.size(), streamed_) == 0) {
        WriteStdout(result->text.substr(streamed_.size()));
      }
      WriteStdout("\n");
    } else {
      WriteStdout(absl::StrCat(result->text, "\n"));
    }
    Detail(RunDetails(result->report));
    if (!quiet_) Talk(GenerateSummary(*result));
    return result->finish == FinishReason::kCancelled ? Interrupt::Reason() : absl::OkStatus();
  }

 private:
  const std::string model_;
  const bool json_, stream_, quiet_, verbose_;
  ProgressMeter meter_;
  std::string streamed_;
};

absl::Status OnRanks(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const GenerateRequest sampling, GenerateOptions(arguments));
  TOROID_ASSIGN_OR_RETURN(DirectRun run, DirectOptions(arguments, kLayout));
  TOROID_ASSIGN_OR_RETURN(const PromptSpec prompt, PromptOfRankZero(arguments));
  Printer printer(arguments);
  run.request = [&, load = run.load](const LoadedModel& model) -> absl::StatusOr<Program> {
    printer.Detail(WorldDetails(load, model));
    Program program;
    program.kind = ProgramKind::kGenerate;
    program.generate = sampling;
    TOROID_ASSIGN_OR_RETURN(program.generate.prompt_ids, PromptIds(prompt, prompt.text, model));
    return program;
  };
  absl::Status answered = absl::OkStatus();
  run.channel.on_progress = [&](uint64_t, const Progress& p) { printer.OnProgress(p); };
  run.channel.on_token = [&](uint64_t, const TokenEvent& token) { printer.OnToken(token); };
  run.channel.on_generated = [&](uint64_t, const absl::StatusOr<GenerateResult>& result) {
    answered = printer.Finish(result);
  };
  TOROID_RETURN_IF_ERROR(RunDirect(std::move(run)));
  return answered;
}

absl::Status ThroughController(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(InferenceRequest request, InferenceOptions(arguments, kLayout));
  GenerateTask task;
  TOROID_ASSIGN_OR_RETURN(task.request, GenerateOptions(arguments));
  TOROID_ASSIGN_OR_RETURN(task.prompt, PromptOptions(arguments, /*keep_files=*/true));
  request.task = std::move(task);

  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  Printer printer(arguments);
  GenerateObserver observer;
  observer.on_accepted = [&](const Accepted& accepted) {
    printer.OnAccepted(request.placement.load, accepted);
  };
  observer.on_progress = [&](const Progress& progress) { printer.OnProgress(progress); };
  observer.on_token = [&](const TokenEvent& token) { printer.OnToken(token); };
  return printer.Finish(client->Generate(request, observer));
}

absl::Status RunGenerate(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const std::string controller, ControllerOption(arguments));
  return controller.empty() ? OnRanks(arguments) : ThroughController(arguments);
}

const OptionTable kStreamOptions = {
    "stream",
    {{"--no-stream", ValueKind::kFlag, "", "", "print the text at the end, not as it comes"}}};

}  // namespace

const Verb kGenerateVerb = {
    .name = "generate",
    .summary = "continue a prompt, here or through a controller",
    .positionals = {{"MODEL", true, "a model directory, a GGUF file or random:NAME"}},
    .tables = {&kPromptOptions, &kSamplingOptions, &kStreamOptions, &kModelOptions, &kMeshOptions,
               &kRunOptions, &kControllerOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid generate random:tiny-gqa --prompt Hello --max-tokens 16\n"
        "toroid generate /models/smollm2 --chat --prompt @question.txt\n"
        "toroid launch -n 4 generate /models/smollm2 --mesh ring=2,tensor=2 --prompt-file "
        "book.txt\n"
        "toroid generate /models/smollm2 --controller 127.0.0.1:7070 --prompt Hello -o json",
    .run = RunGenerate,
};

}  // namespace toroid
