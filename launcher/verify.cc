// toroid verify: this mesh against one rank in float64, tensor by tensor.
#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/client.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/replay.h"
#include "launcher/summary.h"
#include "launcher/terminal.h"
#include "launcher/training_spec.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "parallel/verify_self_test.h"
#include "rpc/prompt.h"
#include "rpc/training_job.h"

namespace toroid {
namespace {

constexpr int64_t kLayersOfJob = 2;       // compared by default
constexpr char kLayout[] = "striped:16";  // that of generate

// How near to its bound, or beyond.
double Excess(const TensorError& tensor) { return tensor.error / tensor.bound; }

// The worst tensor of each layer by that, layers in order, then what belongs to none.
std::string WorstByLayer(const VerifyResult& result) {
  std::map<int64_t, TensorError> worst;
  for (const TensorError& tensor : result.tensors) {
    const int64_t key = tensor.layer < 0 ? INT64_MAX : tensor.layer;
    const auto [at, fresh] = worst.try_emplace(key, tensor);
    if (!fresh && !(Excess(tensor) <= Excess(at->second))) at->second = tensor;  // NaN is the worst
  }
  std::vector<std::vector<std::string>> rows = {{"layer", "worst tensor", "error", "bound"}};
  for (const auto& [layer, tensor] : worst) {
    rows.push_back({tensor.layer < 0 ? "-" : absl::StrCat(layer), tensor.tensor,
                    absl::StrFormat("%.3e", tensor.error), absl::StrFormat("%.1e", tensor.bound)});
  }
  return Table(rows, ColourStdout());
}

absl::Status Print(const Arguments& arguments, const absl::StatusOr<VerifyResult>& result) {
  if (!result.ok()) return Interrupt::ReasonOr(result.status());
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(VerifyJson(arguments.Text("MODEL"), *result), "\n"));
  } else {
    WriteStdout(absl::StrCat(WorstByLayer(*result),
                             result->pass ? "pass: " : "FAIL: ", WorstTensor(*result), "\n"));
  }
  if (VerboseOption(arguments)) TalkLines(RunDetails(result->report));
  return Verdict(*result);
}

// What is compared, without the text.
VerifyTask TaskOf(const Arguments& arguments) {
  VerifyTask task;
  task.tokens = std::max<int64_t>(arguments.Count("--tokens"), 1);
  task.full = arguments.Flag("--full");
  task.request.layers = arguments.Count("--layers");
  return task;
}

bool HasText(const Arguments& arguments) {
  return arguments.Has("--prompt") || arguments.Has("--prompt-file") ||
         arguments.Has("--prompt-ids");
}

// A proof on these ranks: its progress, then what it found.
absl::Status RunAndPrint(const Arguments& arguments, DirectRun run, ProgressMeter& meter) {
  absl::Status answered = absl::OkStatus();
  run.channel.on_progress = [&](uint64_t, const Progress& p) { meter.Update(p); };
  run.channel.on_verified = [&](uint64_t, const absl::StatusOr<VerifyResult>& result) {
    meter.Clear();
    answered = Print(arguments, result);
  };
  TOROID_RETURN_IF_ERROR(RunDirect(std::move(run)));
  return answered;
}

absl::Status OnRanks(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(DirectRun run, DirectOptions(arguments, kLayout));
  VerifyTask task = TaskOf(arguments);
  if (HasText(arguments)) {
    TOROID_ASSIGN_OR_RETURN(task.text, PromptOfRankZero(arguments));
  }
  ProgressMeter meter(ProgressOption(arguments));
  run.request = [&, load = run.load](const LoadedModel& model) -> absl::StatusOr<Program> {
    meter.Clear();
    if (VerboseOption(arguments)) TalkLines(WorldDetails(load, model));
    Program program;
    program.kind = ProgramKind::kVerify;
    program.verify = task.request;
    const std::string text = task.text.has_value() ? task.text->text : "";
    TOROID_ASSIGN_OR_RETURN(program.verify.ids, VerifyIds(task, text, model));
    return program;
  };
  return RunAndPrint(arguments, std::move(run), meter);
}

absl::Status ThroughController(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(InferenceRequest request, InferenceOptions(arguments, kLayout));
  VerifyTask task = TaskOf(arguments);
  if (HasText(arguments)) {
    TOROID_ASSIGN_OR_RETURN(task.text, PromptOptions(arguments, /*keep_files=*/true));
  }
  request.task = std::move(task);
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  ProgressMeter meter(ProgressOption(arguments));
  RequestObserver observer;
  observer.on_accepted = [&](const Accepted& accepted) {
    if (arguments.Flag("--quiet")) return;
    Talk(AcceptedLine(accepted));
    if (VerboseOption(arguments)) {
      TalkLines(WorldDetails(request.placement.load, accepted.mesh, {}));
    }
  };
  observer.on_progress = [&](const Progress& progress) { meter.Update(progress); };
  const absl::StatusOr<VerifyResult> result = client->Verify(request, observer);
  meter.Clear();
  return Print(arguments, result);
}

// --- a training job

bool IsJob(const std::string& path) {
  for (const char* ending : {".textproto", ".txtpb", ".json", ".yaml", ".yml"}) {
    if (absl::EndsWith(path, ending)) return true;
  }
  return false;
}

// The job, whose first step is verified on the tokens that it would train on; nothing of the run is
// written but these.
absl::StatusOr<JobSpec> JobOf(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(JobSpec spec, TrainingSpec(arguments, arguments.Text("MODEL")));
  VerifyTask task = spec.verify.value_or(VerifyTask{});
  if (!spec.verify.has_value() || arguments.Has("--layers")) {
    task.request.layers = arguments.Has("--layers") ? arguments.Count("--layers") : kLayersOfJob;
  }
  if (!spec.verify.has_value() || arguments.Has("--tokens")) {
    task.tokens = std::max<int64_t>(arguments.Count("--tokens"), 1);
  }
  task.full = task.full || arguments.Flag("--full");
  spec.verify = task;
  return spec;
}

absl::Status CheckFlagsOfJob(const Arguments& arguments) {
  if (HasText(arguments)) {
    return UsageError("a text with a job: its data are the job's own: drop the text, or the job");
  }
  for (const char* flag : {"--seed", "--context"}) {
    if (arguments.OriginOf(flag) == Origin::kFlag) {
      return UsageError(absl::StrCat(flag, " with a job: its spec says that: use --set"));
    }
  }
  return absl::OkStatus();
}

absl::Status JobOnRanks(const Arguments& arguments) {
  TOROID_RETURN_IF_ERROR(CheckFlagsOfJob(arguments));
  DirectRun run;
  run.timeout = arguments.Real("--timeout");
  run.stall_timeout = arguments.Real("--stall-timeout");
  JobSpec spec;
  if (SpeaksForWorld()) {
    TOROID_ASSIGN_OR_RETURN(spec, JobOf(arguments));
  }
  run.program = [&](int64_t world_size) -> absl::StatusOr<Program> {
    TOROID_ASSIGN_OR_RETURN(spec.placement.load.mesh, MeshHere(spec.placement.mesh, world_size));
    return VerifyProgram(spec, OutputDirectory(spec, spec.name.empty() ? "train" : spec.name));
  };
  ProgressMeter meter(ProgressOption(arguments));
  return RunAndPrint(arguments, std::move(run), meter);
}

// As a job of its own, whose world has no model yet and is not kept.
absl::Status JobThroughController(const Arguments& arguments) {
  TOROID_RETURN_IF_ERROR(CheckFlagsOfJob(arguments));
  TOROID_ASSIGN_OR_RETURN(JobSpec spec, JobOf(arguments));
  if (arguments.Has("--pod")) spec.placement.pod = arguments.Text("--pod");
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(JobStatus job, client->SubmitJob(spec, /*request_id=*/""));
  if (!arguments.Flag("--quiet")) Talk(absl::StrCat("job ", job.id));
  ProgressMeter meter(ProgressOption(arguments));
  const absl::Status followed = client->WatchJob(job.id, 0, [&](const JobEvent& event) {
    job = event.status;
    if (job.progress.has_value() && job.state == JobState::kRunning) {
      meter.Update({job.progress->phase.c_str(), job.progress->done, job.progress->total});
    }
    return !Interrupt::Cancelled();
  });
  meter.Clear();
  if (Interrupt::Cancelled()) {
    (void)client->CancelJob(job.id);
    return Interrupt::Reason();
  }
  TOROID_RETURN_IF_ERROR(followed);
  if (const auto* result = std::get_if<VerifyResult>(&job.result)) {
    return Print(arguments, *result);
  }
  return WithExitCode(
      absl::UnknownError(absl::StrCat("the job ended ", ToString(job.state), ": ", job.id, ": ",
                                      job.message.empty() ? job.reason : job.message)),
      kExitJobFailed);
}

// --- planted bugs

std::string BugTable(const SelfTestResult& result) {
  std::vector<std::vector<std::string>> rows = {{"bug", "tensor named", "error", "found"}};
  const auto add = [&](const std::string& bug, const TensorError& tensor, const char* found) {
    rows.push_back({bug, tensor.tensor, absl::StrFormat("%.3e", tensor.error), found});
  };
  for (const PlantedBug& bug : result.bugs) add(bug.bug, bug.worst, bug.found ? "yes" : "NO");
  add("none", result.clean.worst, result.clean.pass ? "nothing" : "SOMETHING");
  return Table(rows, ColourStdout());
}

absl::Status SelfTest(const Arguments& arguments) {
  if (UnderLauncher()) {
    return UsageError("--self-test under mpirun or srun: its ranks are threads: run it alone");
  }
  if (!arguments.Text("MODEL").empty()) {
    return UsageError("--self-test with a MODEL: it has one of its own: drop one of the two");
  }
  ProgressMeter meter(ProgressOption(arguments));
  const absl::StatusOr<SelfTestResult> result =
      VerifySelfTest([&](const Progress& p) { meter.Update(p.phase, p.done, p.total, "runs"); });
  meter.Clear();
  TOROID_RETURN_IF_ERROR(result.status());
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(SelfTestJson(*result), "\n"));
  } else {
    WriteStdout(absl::StrCat(BugTable(*result), result->pass ? "pass" : "FAIL", "\n"));
  }
  if (result->pass) return absl::OkStatus();
  return WithExitCode(
      absl::InternalError("verification does not see what it is there for: please report this"),
      kExitFailure);
}

absl::Status RunVerify(const Arguments& arguments) {
  if (arguments.Flag("--self-test")) return SelfTest(arguments);
  if (arguments.Has("--replay")) {
    if (arguments.Text("MODEL").empty()) return ReplayRun(arguments);
    return UsageError(
        "--replay RUN with a MODEL: the run says what it trained: drop one of the two");
  }
  if (arguments.Text("MODEL").empty()) {
    return UsageError("missing argument: MODEL: toroid verify needs one, or --self-test");
  }
  TOROID_ASSIGN_OR_RETURN(const std::string controller, ControllerOption(arguments));
  if (IsJob(arguments.Text("MODEL"))) {
    return controller.empty() ? JobOnRanks(arguments) : JobThroughController(arguments);
  }
  if (arguments.Has("--set")) {
    return UsageError("--set without a job: a model has no such fields: drop the flag");
  }
  return controller.empty() ? OnRanks(arguments) : ThroughController(arguments);
}

const OptionTable kVerifyOptions = {
    "extent",
    {
        {"--layers", ValueKind::kCount, "N", "0",
         "the first N layers only; 0: all (of a job: 2 if not given)"},
        {"--tokens", ValueKind::kCount, "N", "256", "the first N tokens"},
        {"--full", ValueKind::kFlag, "", "", "all tokens of the text, or the whole context"},
        {"--set", ValueKind::kText, "a.b.c=V", "", "a field that beats the job's file (repeat)",
         false, true},
        {"--self-test", ValueKind::kFlag, "", "",
         "plant known bugs in training; each must be found"},
        {"--replay", ValueKind::kText, "RUN", "",
         "make merges and weights of a run on several pods again, from what it kept"},
    }};

}  // namespace

const Verb kVerifyVerb = {
    .name = "verify",
    .summary = "compare a mesh with one rank in float64, tensor by tensor",
    .positionals = {{"MODEL", false,
                     "a model directory, a GGUF file or random:NAME; a training job: *.textproto, "
                     ".json or .yaml"}},
    .tables = {&kVerifyOptions, &kPromptOptions, &kModelOptions, &kMeshOptions, &kRunOptions,
               &kControllerOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid launch -n 4 verify /models/smollm2 --mesh ring=2,tensor=2\n"
        "toroid launch -n 2 verify random:tiny-gqa --compute f64 -o json\n"
        "toroid verify /models/smollm2 --controller 127.0.0.1:7070 --mesh ring=2 --layers 2\n"
        "toroid launch -n 4 verify job.textproto --mesh ring=2,tensor=2     # the first step\n"
        "toroid verify job.textproto --controller 127.0.0.1:7070\n"
        "toroid verify --self-test\n"
        "toroid verify --replay runs/two-pods",
    .run = RunVerify,
    .details =
        "Exit code 1 if a tensor is out of its bound: 1e-9 in f64; "
        "otherwise 4 times the "
        "error of one rank\nat this --compute, at least 1e-6. With --replay: 1 if a merge differs "
        "from its log, or weights\nfrom the param_hash in metrics.jsonl (train.param_hash_every); "
        "3 if something is missing.",
};

}  // namespace toroid
