// toroid generate: a prompt in, tokens out, on the ranks here or through a controller.
#include <map>
#include <string>
#include <utility>

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
  // n: answers to each prompt; several: the request is for more than one.
  Printer(const Arguments& arguments, int64_t n, bool several)
      : n_(n),
        several_(several),
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

  // Answers are made together and shown one after the other: the first that has not ended as it
  // comes, the others when it is their turn.
  void OnToken(const TokenEvent& token) {
    if (!stream_) return;
    meter_.Clear();
    Waiting& waiting = waiting_[{token.prompt_index, token.index}];
    waiting.text += token.text;
    waiting.ended = token.last;
    for (auto next = waiting_.find(turn_); next != waiting_.end(); next = waiting_.find(turn_)) {
      Show(next->second.text);
      const bool ended = next->second.ended;
      waiting_.erase(next);
      if (!ended) break;
      EndTurn();
    }
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
    Print(*result);
    bool cancelled = result->finish == FinishReason::kCancelled;
    for (const GenerateResult& answer : result->more) {
      Print(answer);
      cancelled = cancelled || answer.finish == FinishReason::kCancelled;
    }
    Detail(RunDetails(WholeReport(*result)));
    if (!quiet_) Talk(GenerateSummary(*result));
    return cancelled ? Interrupt::Reason() : absl::OkStatus();
  }

 private:
  using Which = std::pair<int64_t, int64_t>;  // prompt_index, index
  struct Waiting {
    std::string text;
    bool ended = false;
  };

  // More of the answer whose turn it is.
  void Show(const std::string& text) {
    if (!begun_ && several_ && !quiet_) Talk(AnswerHeading(turn_.first, turn_.second));
    begun_ = true;
    WriteStdout(text);
    streamed_ += text;
  }
  void EndTurn() {
    WriteStdout("\n");
    turn_ =
        turn_.second + 1 < n_ ? Which(turn_.first, turn_.second + 1) : Which(turn_.first + 1, 0);
    begun_ = false;
    streamed_.clear();
  }

  void Print(const GenerateResult& answer) {
    const Which which(answer.prompt_index, answer.index);
    if (!stream_) {
      if (!json_ && several_ && !quiet_) Talk(AnswerHeading(which.first, which.second));
      WriteStdout(absl::StrCat(json_ ? GenerateJson(model_, answer, several_) : answer.text, "\n"));
      return;
    }
    if (which < turn_) return;  // shown
    turn_ = which;
    // What the stream still owes: all of an answer whose turn had not come.
    const bool more = answer.text.compare(0, streamed_.size(), streamed_) == 0;
    Show(more ? answer.text.substr(streamed_.size()) : "");
    EndTurn();
  }

  const int64_t n_;  // answers to each prompt
  const bool several_;
  const std::string model_;
  const bool json_, stream_, quiet_, verbose_;
  ProgressMeter meter_;
  Which turn_{0, 0};                  // the answer that is shown as it comes
  bool begun_ = false;                // to be shown
  std::string streamed_;              // of its text
  std::map<Which, Waiting> waiting_;  // what has come and is not shown
};

bool Several(const GenerateTask& task) { return task.request.n > 1 || !task.more_prompts.empty(); }

absl::Status OnRanks(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(DirectRun run, DirectOptions(arguments, kLayout));
  TOROID_ASSIGN_OR_RETURN(GenerateTask task, GenerateTaskOfRankZero(arguments));
  Printer printer(arguments, task.request.n, Several(task));
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
  Printer printer(arguments, task.request.n, Several(task));
  request.task = std::move(task);

  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
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
        "answers;\n--batch of all answers are made together.",
};

}  // namespace toroid
