// toroid launch: prints and runs the mpirun or srun line that works here, and says in one line what
// Open MPI says in ten.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/mpirun_filter.h"
#include "launcher/options.h"
#include "launcher/services.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "parallel/launcher_environment.h"
#include "rpc/mpirun_line.h"
#include "rpc/start_process.h"

namespace toroid {
namespace {

volatile sig_atomic_t child = 0;        // mpirun's pid, for the signal handler
volatile sig_atomic_t interrupted = 0;  // a signal asked us to stop
// The ranks save when SIGUSR1 asks them to end; mpirun then has a process group of its own.
volatile sig_atomic_t saves = 0;

// A terminal's Ctrl-C reaches mpirun by itself, being in the same process group, unless the ranks
// save; what was sent to us alone is passed on.
void PassOn(int signal, siginfo_t* info, void*) {
  const bool ends = signal == SIGINT || signal == SIGTERM;
  // Open MPI gives ranks a second from either on, too little to save in. A second one is meant so.
  const bool gently = saves != 0 && interrupted == 0 && ends;
  if (ends) interrupted = 1;
  if (gently) signal = SIGUSR1;
  const int errno_before = errno;  // what is interrupted goes on with it
  const bool ours_alone = info->si_code != SI_KERNEL || saves != 0;
  if (ours_alone && child > 0) kill(static_cast<pid_t>(child), signal);
  errno = errno_before;
}

void PassSignalsOn() {
  struct sigaction action {};
  action.sa_sigaction = PassOn;
  action.sa_flags = SA_SIGINFO;  // no SA_RESTART: waits end and look again
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) sigaction(signal, &action, nullptr);
}

// Shows the ranks' stderr until mpirun has ended; its wait status.
int Supervise(const StartedProcess& mpirun, MpirunFilter* filter) {
  std::array<char, 4096> block;
  while (true) {
    const ssize_t n = read(mpirun.error, block.data(), block.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    const std::string shown = filter->Feed({block.data(), static_cast<size_t>(n)});
    if (!shown.empty() && write(STDERR_FILENO, shown.data(), shown.size()) < 0) break;
  }
  close(mpirun.error);
  const std::string rest = filter->Finish();
  if (!rest.empty() && write(STDERR_FILENO, rest.data(), rest.size()) < 0) return kExitFailure;
  int status = 0;
  while (waitpid(mpirun.pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

absl::Status RunLaunch(const Arguments& arguments) {
  // Slurm's variables alone do not tell: a batch script has them too, and launch belongs there.
  const Launcher launcher = ThisLauncherEnvironment().launcher;
  if (launcher == Launcher::kOpenMpi || launcher == Launcher::kPmix) {
    return UsageError("launch under mpirun: the ranks are already here: drop `launch -n N`");
  }
  const std::vector<std::string>& words = arguments.rest();
  if (words.empty()) {
    return UsageError("no verb: nothing to launch: write toroid launch -n 4 generate ...");
  }
  TOROID_ASSIGN_OR_RETURN(const VerbCall call, FindVerb(words));
  const std::string verb = call.verb->name;
  if (verb != "generate" && verb != "score" && verb != "train" && verb != "verify" &&
      verb != "bench") {
    return UsageError(absl::StrCat("not for ranks: ", verb,
                                   ": launch runs generate, score, train, verify and bench"));
  }
  if (AsksForHelp(*call.verb, call.words)) {
    WriteStdout(HelpText(*call.verb));
    return absl::OkStatus();
  }
  // A mistake in the verb's own words is said once, before any rank starts.
  TOROID_ASSIGN_OR_RETURN(const Arguments inner, ParseArguments(*call.verb, call.words));
  if (verb != "bench" && inner.OriginOf("--controller") == Origin::kFlag) {
    return UsageError("--controller with launch: the ranks are here: drop one of the two");
  }

  MpirunRequest request;
  if (arguments.Count("--ranks") < 1 || arguments.Count("--ranks") > 1 << 20) {
    return UsageError("bad value of --ranks: give at least 1");
  }
  request.ranks = static_cast<int>(arguments.Count("--ranks"));
  request.hosts = arguments.Text("--hosts");
  request.hostfile = arguments.Text("--hostfile");
  const bool named = !request.hosts.empty() || !request.hostfile.empty();
  if (named && arguments.OriginOf("--ranks") == Origin::kDefault) request.ranks = 0;  // all slots
  request.quiet = false;  // Open MPI's words say which rank died; MpirunFilter shortens them
  request.extra = arguments.Texts("--mpirun-arg");
  TOROID_ASSIGN_OR_RETURN(const std::string self, OwnPath());
  request.command = {self};
  request.command.insert(request.command.end(), words.begin(), words.end());
  if (StderrIsTerminal()) setenv("TOROID_PROGRESS", "bar", /*overwrite=*/0);
  TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> line, MpirunLine(request));
  if (arguments.Flag("--dry-run")) {
    WriteStdout(absl::StrCat(ShellQuoted(line), "\n"));
    return absl::OkStatus();
  }
  if (!arguments.Flag("--quiet")) Talk(absl::StrCat("+ ", ShellQuoted(line)));

  saves = verb == "train";
  PassSignalsOn();
  ProcessSpec spec;  // mpirun gets SIGTERM at our end and passes it on: nothing outlives us
  spec.argv = line;
  spec.read_error = true;
  spec.own_group = saves != 0;
  TOROID_ASSIGN_OR_RETURN(const StartedProcess mpirun, StartProcess(spec));
  child = mpirun.pid;
  MpirunFilter filter;
  const int status = Supervise(mpirun, &filter);
  child = 0;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (interrupted) return SilentExit(kExitInterrupted);
  if (code == 0) return absl::OkStatus();
  std::string failure = filter.Failure();
  if (failure.empty() && OwnExitCode(code) != code) {  // no rank of ours ends so: nobody has spoken
    failure = absl::StrCat("the launcher failed: ", line[0],
                           WIFEXITED(status) ? " ended with exit code " : " was ended by signal ",
                           WIFEXITED(status) ? code : WTERMSIG(status),
                           ": its own words, if any, stand above");
  }
  if (failure.empty()) return SilentExit(filter.ExitCode(code));
  return WithExitCode(absl::UnknownError(failure), filter.ExitCode(code));
}

const OptionTable kLaunchOptions = {
    "launching",
    {
        {"-n,--ranks", ValueKind::kCount, "N", "1",
         "ranks of the world; with hosts: all their slots"},
        {"--hosts", ValueKind::kText, "a:4,b:4", "", "hosts and how many ranks each takes"},
        {"--hostfile", ValueKind::kText, "F", "", "lines `name slots=4`"},
        {"--dry-run", ValueKind::kFlag, "", "", "print the line on stdout and run nothing"},
        {"--mpirun-arg", ValueKind::kText, "ARG", "", "passed to mpirun as it is (repeat for more)",
         false, true},
        {"-q,--quiet", ValueKind::kFlag, "", "", "do not print the line"},
    }};

}  // namespace

const Verb kLaunchVerb = {
    .name = "launch",
    .summary = "run generate, score, train, verify or bench on N ranks: runs the mpirun line",
    .positionals = {},
    .tables = {&kLaunchOptions},
    .examples =
        "toroid launch -n 4 generate random:tiny-gqa --mesh ring=2,tensor=2 --prompt Hello\n"
        "toroid launch -n 2 train deploy/jobs/train.textproto\n"
        "toroid launch --hosts node1:4,node2:4 score /models/llama --file book.txt\n"
        "toroid launch -n 4 --dry-run bench ring",
    .run = RunLaunch,
    .takes_rest = true,
    .details =
        "Under Slurm the line is srun's. The exit code is that of the rank that failed; for a "
        "rank\n"
        "that is killed it is 1, and a line names the rank, its host and the signal.",
};

}  // namespace toroid
