// toroid train: a training job on the ranks here, or handed to a controller and followed.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/client.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/pod_peers.h"
#include "launcher/quantity.h"
#include "launcher/services.h"
#include "launcher/summary.h"
#include "launcher/terminal.h"
#include "launcher/training_spec.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "parallel/launcher_environment.h"
#include "rpc/training_job.h"

namespace toroid {
namespace {

// A run that is asked to stop writes a checkpoint first.
constexpr double kSecondsToSave = 60;

absl::StatusOr<JobSpec> JobOf(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(JobSpec spec, TrainingSpec(arguments, arguments.Text("FILE")));
  if (arguments.Has("--peak-flops")) {
    double& peak = std::get<TrainTask>(spec.task).peak_flops;
    peak = arguments.Real("--peak-flops");
    if (peak < 0) return UsageError("bad value of --peak-flops: give FLOP/s, or 0");
  }
  if (arguments.Has("--memory")) {
    std::get<TrainTask>(spec.task).plan.memory_limit = arguments.Count("--memory");
  }
  if (spec.verify.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a job that is verified, not trained: ", arguments.Text("FILE"),
        ": leave out its field verify, or give it to toroid verify or toroid job submit"));
  }
  return spec;
}

int64_t PodsOf(const JobSpec& spec) {
  return std::get<TrainTask>(spec.task).plan.options.pods.count;
}

// What rank 0 shows of a run.
class Screen {
 public:
  explicit Screen(const Arguments& arguments)
      : json_(JsonOption(arguments)),
        quiet_(arguments.Flag("--quiet")),
        meter_(ProgressOption(arguments)) {}

  void Begin(const TrainingJob& job) {
    job_ = &job;
    if (quiet_) return;
    const LoadRequest& load = job.spec().placement.load;
    Talk(absl::StrCat("training ", load.model, " on mesh ", ToString(load.mesh), ", ", job.steps(),
                      " steps, into ", job.directory()));
  }

  TrainingEvents Events() {
    TrainingEvents events;
    events.on_tokenised = [this](const TokenCacheProgress& progress) {
      meter_.Update("tokenise", progress.bytes_done, progress.bytes, "bytes",
                    absl::StrCat(FormatCount(double(progress.tokens)), " tokens"));
    };
    events.on_step = [this](const StepReport& report) {
      std::string detail = absl::StrFormat("loss %.4f  %s tokens/s", report.result.loss,
                                           FormatCount(report.tokens_per_s));
      const FlopsUse use = job_->Use(report);
      if (use.model) absl::StrAppendFormat(&detail, "  mfu %.1f%%", *use.model * 100);
      if (report.pods) absl::StrAppend(&detail, "  ", PodsText(report));
      meter_.Update("train", report.result.step + 1, job_->steps(), "steps", detail);
      if (!report.result.skipped.empty()) Note(StepLine(report, job_->steps(), use));
    };
    events.on_note = [this](const std::string& sentence) { Note(sentence); };
    events.on_alarm = [this](const std::string& sentence) { Alarm(sentence); };
    events.stop = [] {
      if (Interrupt::Requeue()) return StopAsked::kRequeue;
      return Interrupt::Cancelled() ? StopAsked::kEnd : StopAsked::kNo;
    };
    return events;
  }

  // How the command ends.
  absl::Status Finish(TrainingJob& job, const absl::StatusOr<TrainingResult>& run) {
    meter_.Clear();
    if (!run.ok()) {
      job.End(run.status());
      if (absl::IsCancelled(run.status()) && Interrupt::Requeue()) return Requeue("nothing yet");
      if (absl::IsAborted(run.status())) return run.status();  // not all that was made is kept
      return Interrupt::ReasonOr(run.status());
    }
    const TrainResult result = job.Result(*run);
    job.End(absl::OkStatus());
    if (json_) {
      WriteStdout(absl::StrCat(TrainJson(job.spec().placement.load.model, result), "\n"));
    }
    if (!quiet_) Talk(TrainSummary(result));
    switch (result.run.stopped) {
      case StopAsked::kRequeue:
        return Requeue(result.run.checkpoint);
      case StopAsked::kEnd:
        return absl::Status(
            Interrupt::Reason().code(),
            absl::StrCat(Interrupt::Reason().message(), ": checkpointed ", result.run.checkpoint,
                         ": start the same command again to go on"));
      default:
        return absl::OkStatus();
    }
  }

 private:
  static absl::Status Requeue(absl::string_view checkpoint) {
    return WithExitCode(
        absl::CancelledError(absl::StrCat("stopped by SIGUSR1: checkpointed ", checkpoint,
                                          ": start the same command again to go on")),
        kExitRequeue);
  }

  void Note(const std::string& sentence) {
    if (!quiet_) Alarm(sentence);
  }

  void Alarm(const std::string& sentence) {
    meter_.Clear();
    Talk(sentence);
  }

  const bool json_, quiet_;
  ProgressMeter meter_;
  const TrainingJob* job_ = nullptr;
};

absl::Status OnRanks(const Arguments& arguments) {
  Interrupt::CatchRequeue();
  TOROID_ASSIGN_OR_RETURN(const std::optional<PodPeers> peers, PodPeersOption(arguments));
  DirectRun run;
  if (peers) run.channel.meet = MeetPeers(*peers);
  run.timeout = arguments.Real("--timeout");
  run.grace = kSecondsToSave;
  run.stall_timeout = arguments.Real("--stall-timeout");
  std::optional<JobSpec> spec;
  if (SpeaksForWorld()) {
    TOROID_ASSIGN_OR_RETURN(spec, JobOf(arguments));
    TOROID_RETURN_IF_ERROR(CheckPods(std::get<TrainTask>(spec->task).plan.options.pods, peers));
  }
  Screen screen(arguments);
  std::unique_ptr<TrainingJob> job;
  run.program = [&](int64_t world_size) -> absl::StatusOr<Program> {
    MeshWish wish = spec->placement.mesh;
    if (peers && arguments.OriginOf("--mesh") != Origin::kFlag) {  // it beats the job
      TOROID_ASSIGN_OR_RETURN(wish, MeshOfPod(spec->placement, peers->pod, PodsOf(*spec)));
    }
    TOROID_ASSIGN_OR_RETURN(spec->placement.load.mesh, MeshHere(wish, world_size));
    const MeshShape& mesh = spec->placement.load.mesh;
    spec->placement.mesh = {mesh.data, mesh.ring, mesh.tensor};  // as it runs
    const std::string directory =
        PodDirectory(OutputDirectory(*spec, spec->name.empty() ? "train" : spec->name),
                     peers ? peers->pod : 0, PodsOf(*spec));
    TOROID_ASSIGN_OR_RETURN(job, TrainingJob::Open(*spec, directory, /*epoch=*/0));
    screen.Begin(*job);
    return job->program();
  };
  absl::Status answered = absl::OkStatus();
  run.channel.training = [&](uint64_t) { return job->Record(screen.Events()); };
  run.channel.on_trained = [&](uint64_t, const absl::StatusOr<TrainingResult>& result) {
    answered = screen.Finish(*job, result);
  };
  TOROID_RETURN_IF_ERROR(RunDirect(std::move(run)));
  return answered;
}

// Follows the job's log until it has ended; the job goes on without us.
absl::Status ThroughController(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const JobSpec spec, JobOf(arguments));
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(JobStatus job, client->SubmitJob(spec, /*request_id=*/""));
  const bool talk = !arguments.Flag("--quiet");
  if (talk) Talk(absl::StrCat("job ", job.id, ": toroid job watch|logs|cancel ", job.id));
  LogQuery query;
  query.job = job.id;
  query.follow = true;
  const absl::Status followed = client->StreamLogs(query, [&](const LogLine& line) {
    if (talk) Talk(line.text);
    return !Interrupt::Cancelled();
  });
  if (Interrupt::Cancelled()) {
    return absl::CancelledError(absl::StrCat("interrupted: job ", job.id,
                                             " goes on: toroid job cancel ", job.id, " ends it"));
  }
  TOROID_RETURN_IF_ERROR(followed);
  TOROID_RETURN_IF_ERROR(client->WatchJob(job.id, 0, [&](const JobEvent& event) {
    job = event.status;
    return !Interrupt::Cancelled();
  }));
  TOROID_RETURN_IF_ERROR(Interrupt::Reason());
  const auto* result = std::get_if<TrainResult>(&job.result);
  if (result == nullptr) {
    return WithExitCode(
        absl::UnknownError(absl::StrCat("the job ended ", ToString(job.state), ": ", job.id, ": ",
                                        job.message.empty() ? job.reason : job.message)),
        kExitJobFailed);
  }
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(TrainJson(spec.placement.load.model, *result), "\n"));
  }
  if (talk) Talk(TrainSummary(*result));
  return absl::OkStatus();
}

absl::Status RunTrain(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const std::string controller, ControllerAloneOption(arguments));
  if (controller.empty()) {
    if (!UnderLauncher() && arguments.OriginOf("--on-pool") == Origin::kFlag) {
      return UsageError("--on-pool without --controller: it has the pools: add --controller");
    }
    return OnRanks(arguments);
  }
  for (const char* flag : {"--pod", "--pod-peers"}) {
    if (!arguments.Has(flag)) continue;
    return UsageError(absl::StrCat(flag, " with --controller: that is of worlds which are started ",
                                   "by hand: drop one of the two"));
  }
  return ThroughController(arguments);
}

const OptionTable kTrainOptions = {
    "the job",
    {
        {"--set", ValueKind::kText, "a.b.c=V", "", "a field that beats the file (repeat for more)",
         false, true},
        {"--mesh", ValueKind::kText, "M", "",
         "instead of the job's: data=2,ring=2,tensor=1; * is the rest"},
        {"--layout", ValueKind::kText, "L", "",
         "instead of the job's: contiguous, zigzag, striped or striped:N"},
        {"--threads", ValueKind::kCount, "N", "",
         "instead of the job's: per rank; 0: the host's cores split over its ranks"},
        {"--compute", ValueKind::kChoice, "f32|f64|bf16", "",
         "instead of the job's; bf16: products; weights and sums stay f32"},
        {"--device", ValueKind::kChoice, "auto|cpu|cuda", "", "instead of the job's"},
        {"--peak-flops", ValueKind::kReal, "X", "",
         "instead of the job's: of one rank, FLOP/s, for mfu; 0: measured, or a GPU's data sheet"},
        {"--memory", ValueKind::kBytes, "BYTES", "",
         "instead of the job's: what a rank may take; 0: its share of what its host has free"},
        {"--controller", ValueKind::kText, "HOST:PORT", "",
         "run there instead of in this process (also TOROID_CONTROLLER)", true},
        kOnPool,
        kTlsDir,
    }};

}  // namespace

const Verb kTrainVerb = {
    .name = "train",
    .summary = "train a model as a job spec says, here or through a controller",
    .positionals = {{"FILE", true, "a job spec: textproto, JSON or YAML; - is standard input"}},
    .tables = {&kTrainOptions, &kPodPeersOptions, &kSlowLinkOptions, &kRunOptions, &kOutputOptions},
    .examples =
        "toroid train deploy/jobs/train.textproto --set train.steps=20\n"
        "toroid launch -n 4 train job.textproto --mesh data=2,ring=2\n"
        "toroid train job.textproto --controller 127.0.0.1:7070\n"
        "toroid launch -n 2 train job.textproto --set mesh.pods=2 --pod 0 --pod-peers "
        "127.0.0.1:7091,127.0.0.1:7092\n"
        "toroid train job.textproto --set mesh.pods=2 --pod 1 --pod-peers "
        "127.0.0.1:7091,127.0.0.1:7092\n"
        "kill -USR1 PID     # of launch or mpirun: checkpoint and exit 75; the same command goes "
        "on",
    .run = RunTrain,
    .details =
        "Started again with the same output directory, a run goes on from its newest checkpoint, "
        "also on another\nmesh. Ctrl-C, SIGTERM and --timeout save first, here and under toroid "
        "launch; a second signal does not wait.\nmpirun by itself gives its ranks a second, which "
        "is too short: send it SIGUSR1 instead. The directory holds\nconfig.textproto, "
        "metrics.jsonl, TensorBoard's events, logs/ and checkpoints/, export/ if asked for, and\n"
        "evidence/ after a failure; with several pods it has pod-0, pod-1, .. and each of these "
        "holds that. toroid\nconfig schema lists all fields of a job.",
};

}  // namespace toroid
