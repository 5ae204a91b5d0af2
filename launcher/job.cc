// toroid job ...: jobs of a controller.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/client.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/job_spec.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/suggest.h"
#include "launcher/summary.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

bool JsonLines(const Arguments& arguments) { return arguments.Text("--format") == "jsonl"; }

// "RUNNING on pod a (mesh data=1,ring=2,tensor=1): sentence"
std::string StateLine(const JobStatus& job) {
  std::string line = absl::StrCat(job.id, "  ", ToString(job.state));
  if (!job.reason.empty()) absl::StrAppend(&line, " (", job.reason, ")");
  if (!job.pod.empty()) absl::StrAppend(&line, "  pod ", job.pod);
  if (job.epoch > 0) absl::StrAppend(&line, "  mesh ", ToString(job.mesh), "  epoch ", job.epoch);
  if (!job.message.empty()) absl::StrAppend(&line, "  ", job.message);
  return line;
}

constexpr int64_t kMostJobs = 1000;  // of one ListJobs

std::string Since(absl::Time time) {
  if (time == absl::InfinitePast()) return "-";
  return FormatSeconds(absl::ToDoubleSeconds(absl::Now() - time));
}

// The exit code of a job that has ended: 5 if it failed, naming the rank.
absl::Status Verdict(const JobStatus& job) {
  if (job.state == JobState::kFailed || job.state == JobState::kCancelled) {
    std::string why = job.message.empty() ? job.exit.message : job.message;
    if (job.exit.rank >= 0) {
      absl::StrAppend(&why, " (rank ", job.exit.rank,
                      job.exit.host.empty() ? "" : absl::StrCat(" on host ", job.exit.host), ")");
    }
    return WithExitCode(
        absl::UnknownError(absl::StrCat(
            job.state == JobState::kFailed ? "the job failed: " : "the job was cancelled: ", job.id,
            ": ", why.empty() ? absl::StrCat("see toroid job logs ", job.id) : why)),
        kExitJobFailed);
  }
  return absl::OkStatus();
}

void PrintAnswers(const GenerateResult& result, bool quiet) {
  const bool several = !result.more.empty();
  if (several && !quiet) Talk(AnswerHeading(result.prompt_index, result.index));
  WriteStdout(absl::StrCat(result.text, "\n"));
  for (const GenerateResult& answer : result.more) {
    if (!quiet) Talk(AnswerHeading(answer.prompt_index, answer.index));
    WriteStdout(absl::StrCat(answer.text, "\n"));
  }
}

// The answer of a job that has ended: with -o json it is in the job's object, and only -v adds.
void PrintResult(const Arguments& arguments, const JobStatus& job) {
  const RunReport* report = nullptr;
  RunReport whole;
  std::string text;
  if (const auto* generate = std::get_if<GenerateResult>(&job.result)) {
    whole = WholeReport(*generate);
    report = &whole;
    if (!JsonOption(arguments)) PrintAnswers(*generate, arguments.Flag("--quiet"));
  } else if (const auto* score = std::get_if<ScoreResult>(&job.result)) {
    report = &score->report;
    text = absl::StrCat("tokens ", score->tokens, "  mean nll ", score->mean_nll, "\n");
  } else if (const auto* train = std::get_if<TrainResult>(&job.result)) {
    if (!JsonOption(arguments)) WriteStdout(absl::StrCat(TrainSummary(*train), "\n"));
  } else if (const auto* verify = std::get_if<VerifyResult>(&job.result)) {
    report = &verify->report;
    text = absl::StrFormat("%s: %s, error %.3e, bound %.1e\n", verify->pass ? "pass" : "FAIL",
                           verify->worst.tensor, verify->worst.error, verify->worst.bound);
  }
  if (report == nullptr) return;
  if (!JsonOption(arguments)) WriteStdout(text);
  if (VerboseOption(arguments)) TalkLines(RunDetails(*report));
}

// What people see of a job's events, one after the other: states, and progress between them.
class EventLines {
 public:
  std::string Next(const JobEvent& event) {
    const bool same = event.sequence == last_ && event.status.progress.has_value();
    last_ = event.sequence;
    return same ? JobProgressLine(event.status) : StateLine(event.status);
  }

 private:
  uint64_t last_ = 0;
};

// Follows a job to its end, printing each change; the last status.
absl::StatusOr<JobStatus> Follow(Client& client, const std::string& id, uint64_t from,
                                 const std::function<void(const JobEvent&)>& print) {
  JobStatus last;
  const absl::Status status = client.WatchJob(id, from, [&](const JobEvent& event) {
    last = event.status;
    print(event);
    return !Interrupt::Cancelled();
  });
  if (Interrupt::Cancelled()) return Interrupt::Reason();
  TOROID_RETURN_IF_ERROR(status);
  return last;
}

absl::Status RunSubmit(const Arguments& arguments) {
  std::vector<std::string> settings = arguments.Texts("--set");
  if (arguments.Has("--on-pool")) {
    settings.push_back(absl::StrCat("on_pool=", arguments.Text("--on-pool")));
  }
  TOROID_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(arguments.Text("FILE"), settings));
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(JobStatus job, client->SubmitJob(spec, arguments.Text("--request-id")));
  if (!arguments.Flag("--wait")) {
    WriteStdout(absl::StrCat(JsonOption(arguments) ? JobJson(job) : job.id, "\n"));
    return absl::OkStatus();
  }
  const bool talk = !arguments.Flag("--quiet");
  EventLines shown;
  TOROID_ASSIGN_OR_RETURN(job, Follow(*client, job.id, 0, [&](const JobEvent& event) {
                            if (talk) Talk(shown.Next(event));
                          }));
  if (JsonOption(arguments)) WriteStdout(absl::StrCat(JobJson(job), "\n"));
  PrintResult(arguments, job);
  return Verdict(job);
}

absl::Status RunList(const Arguments& arguments) {
  std::vector<JobState> states;
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(JobState::kCancelled); ++i) {
    names.emplace_back(ToString(static_cast<JobState>(i)));
  }
  for (const std::string& text : arguments.Texts("--state")) {
    const auto found = std::find(names.begin(), names.end(), absl::AsciiStrToUpper(text));
    if (found == names.end()) {
      return UsageError(
          absl::StrCat("not a state: ", text, DidYouMean(text, names, "give QUEUED, RUNNING, ..")));
    }
    states.push_back(static_cast<JobState>(found - names.begin()));
  }
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  const int64_t limit = arguments.Count("--limit");
  TOROID_ASSIGN_OR_RETURN(const JobPage page,
                          client->ListJobs(states, static_cast<int>(std::min(limit, kMostJobs)),
                                           arguments.Text("--page-token")));
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(JobListJson(page), "\n"));
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"id", "name", "state", "pod", "age", "message"}};
  for (const JobStatus& job : page.jobs) {
    rows.push_back({job.id, job.name, ToString(job.state), job.pod.empty() ? "-" : job.pod,
                    Since(job.created), job.message});
  }
  WriteStdout(Table(rows, ColourStdout()));
  if (!page.next_page_token.empty()) {
    Talk(absl::StrCat("more: --page-token ", page.next_page_token));
  }
  return absl::OkStatus();
}

void PrintJob(const Arguments& arguments, const JobStatus& job) {
  WriteStdout(absl::StrCat(JsonOption(arguments) ? JobJson(job) : StateLine(job), "\n"));
  if (JsonOption(arguments) || !job.checkpoint) return;
  WriteStdout(absl::StrFormat("checkpoint  step %d  %s  %016x  epoch %d\n", job.checkpoint->step,
                              job.checkpoint->path, job.checkpoint->hash, job.checkpoint->epoch));
}

absl::Status RunGet(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const JobStatus job, client->GetJob(arguments.Text("ID")));
  PrintJob(arguments, job);
  PrintResult(arguments, job);
  return absl::OkStatus();
}

absl::Status RunWatch(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  const uint64_t from = static_cast<uint64_t>(arguments.Count("--from-sequence"));
  const bool json = JsonOption(arguments), lines = JsonLines(arguments);
  std::vector<JobEvent> events;
  EventLines shown;
  TOROID_ASSIGN_OR_RETURN(
      const JobStatus job, Follow(*client, arguments.Text("ID"), from, [&](const JobEvent& event) {
        if (json) {
          events.push_back(event);
        } else {
          WriteStdout(absl::StrCat(lines ? JobEventJson(event) : shown.Next(event), "\n"));
        }
      }));
  if (json) WriteStdout(absl::StrCat(JobEventListJson(events), "\n"));
  return Verdict(job);
}

absl::Status RunLogs(const Arguments& arguments) {
  LogQuery query;
  query.job = arguments.Text("ID");
  query.from_offset = static_cast<uint64_t>(arguments.Count("--from-offset"));
  query.follow = arguments.Flag("--follow");
  for (const std::string& text : arguments.Texts("--rank")) {
    int rank;
    if (!absl::SimpleAtoi(text, &rank) || rank < 0) {
      return UsageError(absl::StrCat("bad value of --rank: ", text, ": give a rank's number"));
    }
    query.ranks.push_back(rank);
  }
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  const bool json = JsonOption(arguments), lines = JsonLines(arguments);
  const bool plain = arguments.Flag("--no-prefix");
  std::vector<LogLine> log;
  const absl::Status status = client->StreamLogs(query, [&](const LogLine& line) {
    if (json) {
      log.push_back(line);
    } else if (lines) {
      WriteStdout(absl::StrCat(LogLineJson(line), "\n"));
    } else if (plain) {
      WriteStdout(absl::StrCat(line.text, "\n"));
    } else {
      const std::string from = line.rank < 0 ? "mpirun" : absl::StrCat("rank ", line.rank);
      WriteStdout(absl::StrCat("[", from, line.error ? " err] " : "] ", line.text, "\n"));
    }
    return !Interrupt::Cancelled();
  });
  if (json && status.ok()) WriteStdout(absl::StrCat(LogListJson(log), "\n"));
  return Interrupt::ReasonOr(status);
}

absl::Status RunCancel(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const JobStatus job, client->CancelJob(arguments.Text("ID")));
  PrintJob(arguments, job);
  return absl::OkStatus();
}

absl::Status RunDelete(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  return client->DeleteJob(arguments.Text("ID"));
}

const OptionTable kSubmitOptions = {
    "submission",
    {
        {"--set", ValueKind::kText, "a.b.c=V", "", "a field that beats the file (repeat for more)",
         false, true},
        {"--request-id", ValueKind::kText, "ID", "",
         "a repeat with the same id submits nothing new"},
        {"--on-pool", ValueKind::kText, "NAME", "",
         "in the world of this pool job, in turn with its other clients"},
        {"--wait", ValueKind::kFlag, "", "", "follow the job to its end; exit 5 if it fails"},
    }};
const OptionTable kListOptions = {
    "list",
    {
        {"--state", ValueKind::kText, "S", "", "only jobs in this state (repeat for more)", false,
         true},
        {"--limit", ValueKind::kCount, "N", "100", "at most so many, up to 1000, newest first"},
        {"--page-token", ValueKind::kText, "T", "", "where the last list ended"},
    }};
const OptionTable kWatchOptions = {
    "watch", {{"--from-sequence", ValueKind::kCount, "N", "0", "every event from this one on"}}};
const OptionTable kLogsOptions = {
    "logs",
    {
        {"--follow", ValueKind::kFlag, "", "", "until the job ends"},
        {"--rank", ValueKind::kText, "R", "", "only this rank (repeat for more)", false, true},
        {"--from-offset", ValueKind::kCount, "N", "0", "bytes of the log to leave out"},
        {"--no-prefix", ValueKind::kFlag, "", "", "the lines alone, without [rank N]"},
    }};

const Positional kId = {"ID", true, "a job's id, as submit printed it"};

}  // namespace

const Verb kJobSubmitVerb = {
    .name = "job submit",
    .summary = "hand a job to the controller (also: submit)",
    .positionals = {{"FILE", true, "a job spec: textproto, JSON or YAML; - is standard input"}},
    .tables = {&kSubmitOptions, &kClientOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid job submit deploy/jobs/generate.textproto --wait\n"
        "toroid job submit job.yaml --set generate.max_tokens=64 --set mesh.ring=2\n"
        "toroid job submit deploy/jobs/pool.textproto && toroid job submit job.yaml --on-pool pool",
    .run = RunSubmit,
};
const Verb kJobListVerb = {
    .name = "job list",
    .summary = "jobs of the controller, newest first (also: jobs)",
    .positionals = {},
    .tables = {&kListOptions, &kClientOptions, &kOutputOptions},
    .examples = "toroid job list --state RUNNING\ntoroid job list -o json",
    .run = RunList,
};
const Verb kJobGetVerb = {
    .name = "job get",
    .summary = "the present state of a job, and its result",
    .positionals = {kId},
    .tables = {&kClientOptions, &kOutputOptions, &kDetailOptions},
    .examples = "toroid job get ID\ntoroid job get ID -o json",
    .run = RunGet,
};
const Verb kJobWatchVerb = {
    .name = "job watch",
    .summary = "follow a job's states and progress to its end; exit 5 if it fails",
    .positionals = {kId},
    .tables = {&kWatchOptions, &kClientOptions, &kLinesOptions},
    .examples = "toroid job watch ID\ntoroid job watch ID -o jsonl",
    .run = RunWatch,
};
const Verb kJobLogsVerb = {
    .name = "job logs",
    .summary = "what a job's ranks wrote",
    .positionals = {kId},
    .tables = {&kLogsOptions, &kClientOptions, &kLinesOptions},
    .examples = "toroid job logs ID --follow --rank 0",
    .run = RunLogs,
};
const Verb kJobCancelVerb = {
    .name = "job cancel",
    .summary = "ask a job to end",
    .positionals = {kId},
    .tables = {&kClientOptions, &kOutputOptions},
    .examples = "toroid job cancel ID",
    .run = RunCancel,
};
const Verb kJobDeleteVerb = {
    .name = "job delete",
    .summary = "forget an ended job and its log",
    .positionals = {kId},
    .tables = {&kClientOptions},
    .examples = "toroid job delete ID",
    .run = RunDelete,
};

}  // namespace toroid
