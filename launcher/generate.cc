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
  // several: the request is for more than one answer.
  Printer(const Arguments& arguments, bool several)
      : several_(several),
        model_(arguments.Text("MODEL")),
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
    Begin(token.prompt_index, token.index);
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
    const GenerateResult& last = result->more.empty() ? *result : result->more.back();
    if (stream_) {
      Begin(last.prompt_index, last.index);  // if it was cancelled before its first token
      // What the stream still owes: text that became complete only at the end.
      if (last.text.size() > streamed_.size() &&
          last.text.compare(0, streamed_.size(), streamed_) == 0) {
        WriteStdout(last.text.substr(streamed_.size()));
      }
      WriteStdout("\n");
    } else {
      Print(*result);
      for (const GenerateResult& answer : result->more) Print(answer);
    }
    Detail(RunDetails(WholeReport(*result)));
    if (!quiet_) Talk(GenerateSummary(*result));
    return last.finish == FinishReason::kCancelled ? Interrupt::Reason() : absl::OkStatus();
  }

 private:
  // The stream goes on with this answer.
  void Begin(int64_t prompt_index, int64_t index) {
    const std::pair<int64_t, int64_t> answer(prompt_index, index);
    if (streaming_ == answer) return;
    if (streaming_.first >= 0) WriteStdout("\n");
    streaming_ = answer;
    streamed_.clear();
    if (several_ && !quiet_) Talk(AnswerHeading(prompt_index, index));
  }

  void Print(const GenerateResult& answer) {
    if (!json_ && several_ && !quiet_) Talk(AnswerHeading(answer.prompt_index, answer.index));
    WriteStdout(absl::StrCat(json_ ? GenerateJson(model_, answer, several_) : answer.text, "\n"));
  }

  const bool several_;
  const std::string model_;
  const bool json_, stream_, quiet_, verbose_;
  ProgressMeter meter_;
  std::pair<int64_t, int64_t> streaming_{-1, -1};  // prompt_index and index of the answer
  std::string streamed_;                           // of its text
};

bool Several(const GenerateTask& task) { return task.request.n > 1 || !task.more_prompts.empty(); }

absl::Status OnRanks(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(DirectRun run, DirectOptions(arguments, kLayout));
  TOROID_ASSIGN_OR_RETURN(GenerateTask task, GenerateTaskOfRankZero(arguments));
  Printer printer(arguments, Several(task));
  run.request = [&, load = run.load](const LoadedModel& model) -> absl::StatusOr<Program> {
    printer.Detail(WorldDetails(load, model));
    Program program;
    program.kind = ProgramKind::kGenerate;
    TOROID_RETURN_IF_ERROR(SetPromptIds(
        task, [&](const PromptSpec& prompt) { return PromptIds(prompt, prompt.text, model); }));
    program.generate = task.request;
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
  TOROID_ASSIGN_OR_RETURN(GenerateTask task, GenerateTaskOptions(arguments, /*keep_files=*/true));
  const bool several = Several(task);
  request.task = std::move(task);

  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  Printer printer(arguments, several);
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
    .positionals = {{"MODEL", true, "a model directory, a GGUF file, a checkpoint or random:NAME"}},
    .tables = {&kPromptOptions, &kSamplingOptions, &kStreamOptions, &kModelOptions, &kMeshOptions,
               &kRunOptions, &kControllerOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid generate random:tiny-gqa --prompt Hello --max-tokens 16\n"
        "toroid generate /models/smollm2 --chat --prompt @question.txt\n"
        "toroid launch -n 4 generate /models/smollm2 --mesh ring=2,tensor=2 --prompt-file "
        "book.txt\n"
        "toroid generate random:tiny-gqa --prompt Hello --prompt Bye -n 3 --temperature 0.8 -o "
        "json\n"
        "toroid generate /models/smollm2 --controller 127.0.0.1:7070 --prompt Hello -o json",
    .run = RunGenerate,
    .details =
        "With several prompts or -n above 1 each answer has a heading on stderr; -o json prints "
        "one "
        "object a line,\nwith prompt_index and index. A prompt is read once for all of its "
        "answers.",
};

}  // namespace toroid
