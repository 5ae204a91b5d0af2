// toroid up: controller and agents on this machine, as processes of their own.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/scratch.h"
#include "launcher/services.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "rpc/client.h"
#include "rpc/start_process.h"

namespace toroid {
namespace {

using Clock = std::chrono::steady_clock;

struct Child {
  std::string name;  // "controller", "agent of pod a"
  std::vector<std::string> argv;
  pid_t pid = -1;
  int output = -1;  // reading end of its stdout
};

// From the main thread, which lives as long as this process.
absl::Status Start(Child* child) {
  ProcessSpec spec;
  spec.argv = child->argv;
  spec.read_output = true;
  TOROID_ASSIGN_OR_RETURN(const StartedProcess started, StartProcess(spec));
  if (child->output >= 0) close(child->output);
  child->output = started.output;
  child->pid = started.pid;
  return absl::OkStatus();
}

// The child's first line on stdout. An empty one if it ended without.
std::string FirstLine(int output) {
  std::string line;
  char c;
  while (!Interrupt::Cancelled()) {
    const ssize_t n = read(output, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || c == '\n') break;
    line += c;
  }
  return line;
}

// "exit code 3" or "signal 9".
std::string EndOf(int status) {
  return WIFSIGNALED(status) ? absl::StrCat("signal ", WTERMSIG(status))
                             : absl::StrCat("exit code ", WEXITSTATUS(status));
}

// Our exit code where a service has ended that should not.
int CodeOf(int status) {
  const int code = WIFEXITED(status) ? OwnExitCode(WEXITSTATUS(status)) : kExitFailure;
  return code == kExitOk ? kExitFailure : code;
}

// Everything that `up` has started. Stop ends all of it.
class Family {
 public:
  ~Family() { Stop(); }

  absl::StatusOr<std::string> StartController(const std::vector<std::string>& argv) {
    children_.push_back({"controller", argv});
    TOROID_RETURN_IF_ERROR(Start(&children_.back()));
    const std::string line = FirstLine(children_.back().output);
    absl::string_view address = line;
    if (absl::ConsumePrefix(&address, "READY ")) return std::string(address);
    if (Interrupt::Cancelled()) return Interrupt::Reason();
    int status = 0;
    waitpid(children_.back().pid, &status, 0);
    children_.pop_back();
    // It has said why on stderr.
    return SilentExit(CodeOf(status));
  }

  absl::Status StartAgent(const std::string& pod, const std::vector<std::string>& argv) {
    children_.push_back({absl::StrCat("agent of pod ", pod), argv});
    return Start(&children_.back());
  }

  // Looks once for children that have ended. The controller's end, or an agent's before `ready`, is
  // ours too; later an agent is started again after a second.
  absl::Status Look(bool ready) {
    for (Child& child : children_) {
      int status = 0;
      if (child.pid > 0 && waitpid(child.pid, &status, WNOHANG) == child.pid) {
        child.pid = -1;
        if (!ready || child.name == "controller") {
          return WithExitCode(
              absl::UnknownError(absl::StrCat("a service ended: the ", child.name, ", ",
                                              EndOf(status), ": its own words stand above")),
              CodeOf(status));
        }
        Talk(absl::StrCat("toroid: a service ended: the ", child.name, ", ", EndOf(status),
                          ": starting it again"));
        restart_at_ = Clock::now() + std::chrono::seconds(1);
      }
      if (child.pid < 0 && Clock::now() >= restart_at_) TOROID_RETURN_IF_ERROR(Start(&child));
    }
    return absl::OkStatus();
  }

  // Agents first, so that they still can tell the controller; what is left after ten seconds is
  // killed.
  void Stop() {
    for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
      if (child->pid > 0) kill(child->pid, SIGTERM);
      if (child == children_.rend() - 1) break;
      Await(&*child, std::chrono::seconds(10));
    }
    if (!children_.empty()) Await(&children_.front(), std::chrono::seconds(10));
    children_.clear();
  }

 private:
  static void Await(Child* child, std::chrono::seconds limit) {
    const auto deadline = Clock::now() + limit;
    while (child->pid > 0 && waitpid(child->pid, nullptr, WNOHANG) == 0) {
      if (Clock::now() > deadline) kill(child->pid, SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    child->pid = -1;
    if (child->output >= 0) close(child->output);
  }

  std::vector<Child> children_;  // the controller first
  Clock::time_point restart_at_{};
};

// Where this machine dials what listens on all of its addresses.
std::string Reachable(const std::string& listens) {
  absl::string_view port = listens;
  const bool all = absl::ConsumePrefix(&port, "0.0.0.0:") || absl::ConsumePrefix(&port, "[::]:");
  return all ? absl::StrCat("127.0.0.1:", port) : listens;
}

std::string PodName(int64_t index) {
  std::string name(1, static_cast<char>('a' + index % 26));
  return index < 26 ? name : absl::StrCat(name, index / 26);
}

absl::Status RunUp(const Arguments& arguments) {
  const int64_t pods = arguments.Count("--pods"), ranks = arguments.Count("--ranks");
  if (pods < 1 || pods > 1000 || ranks < 1 || ranks > 4096) {
    return UsageError("bad value of --pods or --ranks: give 1 to 1000 pods of 1 to 4096 ranks");
  }
  // Said once here, before anything starts.
  TOROID_RETURN_IF_ERROR(RootOptions(arguments).status());
  ClientOptions options;
  TOROID_ASSIGN_OR_RETURN(options.tls, ReadTls(arguments.Text("--tls-dir")));
  Interrupt::Install(/*timeout=*/0, /*grace=*/30);
  ScratchDir scratch;
  std::string state = arguments.Text("--state");
  if (state.empty()) {
    TOROID_ASSIGN_OR_RETURN(scratch, ScratchDir::Make("toroid-up"));
    state = absl::StrCat(scratch.path(), "/state");
  }
  TOROID_ASSIGN_OR_RETURN(const std::string self, OwnPath());
  Family family;
  std::vector<std::string> argv = {self,
                                   "controller",
                                   "--listen",
                                   arguments.Text("--listen"),
                                   "--state",
                                   state,
                                   "--lease",
                                   arguments.Text("--lease"),
                                   "--end-with-parent"};
  if (arguments.Flag("--no-reflection")) argv.push_back("--no-reflection");
  if (options.tls.on()) argv.insert(argv.end(), {"--tls-dir", options.tls.dir});
  TOROID_ASSIGN_OR_RETURN(const std::string listens, family.StartController(argv));
  const std::string address = Reachable(listens);
  for (int64_t i = 0; i < pods; ++i) {
    argv = {self,
            "agent",
            "--pod",
            PodName(i),
            "--controller",
            address,
            "--slots",
            absl::StrCat(ranks),
            "--stall-timeout",
            arguments.Text("--stall-timeout"),
            "--end-with-parent"};
    if (options.tls.on()) argv.insert(argv.end(), {"--tls-dir", options.tls.dir});
    for (const Option& flag : kSlowLinkOptions.options) {
      argv.insert(argv.end(), {flag.names, arguments.Text(flag.names)});
    }
    for (const char* flag : {"--root", "--mpirun-arg"}) {
      for (const std::string& text : arguments.Texts(flag)) {
        argv.insert(argv.end(), {flag, text});
      }
    }
    TOROID_RETURN_IF_ERROR(family.StartAgent(PodName(i), argv));
  }

  options.controller = address;
  options.timeout = absl::Seconds(1);
  options.interrupt = Interrupt::Flag();
  const std::unique_ptr<Client> client = NewClient(options);
  while (!Interrupt::Cancelled()) {
    TOROID_RETURN_IF_ERROR(family.Look(/*ready=*/false));
    if (client->AwaitPods(static_cast<int>(pods), absl::Milliseconds(200)).ok()) break;
  }
  if (!Interrupt::Cancelled()) {
    WriteStdout(absl::StrCat("READY ", listens, " pods=", pods, " ranks=", ranks, "\n"));
  }
  while (!Interrupt::Cancelled()) {
    TOROID_RETURN_IF_ERROR(family.Look(/*ready=*/true));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return absl::OkStatus();  // to be stopped is what a service is asked
}

const OptionTable kUpOptions = {
    "cluster",
    {
        {"--pods", ValueKind::kCount, "P", "1", "pods, each with an agent"},
        {"--ranks", ValueKind::kCount, "R", "1", "ranks that a pod can hold"},
    }};

}  // namespace

const Verb kUpVerb = {
    .name = "up",
    .summary = "controller and agents on this machine, until Ctrl-C",
    .positionals = {},
    .tables = {&kUpOptions, &kControllerOptionsTable, &kAgentOptionsTable, &kSlowLinkOptions,
               &kTlsOptions},
    .examples =
        "toroid up --pods 2 --ranks 2 --root models=$HOME/.cache/toroid/models\n"
        "toroid up --listen 127.0.0.1:0 --state /tmp/state\n"
        "toroid up --listen 0.0.0.0:7070 --tls-dir pki/head",
    .run = RunUp,
    .details =
        "Prints one line, READY ADDRESS, once all pods are there. Without --state jobs are\n"
        "forgotten at the end. An agent that dies is started again.",
};

}  // namespace toroid
