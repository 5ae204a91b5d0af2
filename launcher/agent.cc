// toroid agent: one per pod; dials the controller, launches worlds with mpirun,
// reaps them.
#include <unistd.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/scratch.h"
#include "launcher/services.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "rpc/agent_process.h"

namespace toroid {
namespace {

absl::Status RunAgentVerb(const Arguments& arguments) {
  EndWithParent(arguments);
  AgentOptions options;
  options.pod = arguments.Text("--pod");
  options.controller = arguments.Text("--controller");
  if (options.controller.empty()) {
    return UsageError("no controller: --controller HOST:PORT or TOROID_CONTROLLER: give one");
  }
  const int64_t slots = arguments.Count("--slots");
  if (slots > 1 << 20) return UsageError("bad value of --slots: give a number of ranks");
  options.slots = static_cast<int>(slots);
  options.hosts = arguments.Text("--hosts");
  options.hostfile = arguments.Text("--hostfile");
  TOROID_ASSIGN_OR_RETURN(options.roots, RootOptions(arguments));
  TOROID_ASSIGN_OR_RETURN(options.toroid, OwnPath());
  options.mpirun_extra = arguments.Texts("--mpirun-arg");
  options.tls_dir = arguments.Text("--tls-dir");
  options.stall_timeout = arguments.Text("--stall-timeout");
  options.throttle = SlowLink(arguments);
  // Launch files carry credentials: a directory of this process alone, unless
  // one is named.
  ScratchDir scratch;
  options.scratch_dir = arguments.Text("--scratch");
  if (options.scratch_dir.empty()) {
    TOROID_ASSIGN_OR_RETURN(scratch, ScratchDir::Make("toroid-agent"));
    options.scratch_dir = scratch.path();
  }
  Interrupt::Install(
      /*timeout=*/0,
      /*grace=*/20);  // a world may need 5 s to end, and its ranks too
  std::atomic<bool> said{false};
  return RunAgent(
      options, *Interrupt::Flag(),
      [&] {
        if (!said.exchange(true)) {
          WriteStdout(absl::StrCat("READY pod ", options.pod, " at ", options.controller, "\n"));
        }
      },
      [&](const absl::Status& why) {
        if (Interrupt::Cancelled()) return;
        const bool refused = why.code() == absl::StatusCode::kUnauthenticated;
        Talk(absl::StrCat(refused ? std::string(why.message())
                                  : "controller is not reachable: " + options.controller,
                          ": pod ", options.pod, " tries again"));
      });
}

const OptionTable kPodOptions = {
    "pod",
    {
        {"--pod", ValueKind::kText, "NAME", "a", "unique among the controller's pods", true},
        {"--controller", ValueKind::kText, "HOST:PORT", "", "also TOROID_CONTROLLER", true},
        {"--slots", ValueKind::kCount, "N", "0", "ranks it can hold; 0: the hosts' slots, or cores",
         true},
        {"--hosts", ValueKind::kText, "a:4,b:4", "", "hosts of this pod; default: this machine"},
        {"--hostfile", ValueKind::kText, "F", "", "lines `name slots=4`"},
        {"--scratch", ValueKind::kText, "DIR", "", "launch files; default: a temporary directory",
         true},
    }};

}  // namespace

const Verb kAgentVerb = {
    .name = "agent",
    .summary = "one per pod: starts worlds for the controller and watches them",
    .positionals = {},
    .tables = {&kPodOptions, &kAgentOptionsTable, &kSlowLinkOptions, &kTlsOptions,
               &kServiceOptions},
    .examples =
        "toroid agent --pod a --controller 127.0.0.1:7070 --slots 8 --root "
        "models=/models\n"
        "toroid agent --pod b --controller head:7070 --hostfile hosts.txt --tls-dir pki/node1",
    .run = RunAgentVerb,
    .details =
        "Prints READY once the controller has accepted the pod. Only "
        "models under a --root "
        "and random: models may run. A pod of several hosts: this one comes first in --hosts or "
        "--hostfile, and --tls-dir lies at the same path on each, with its own certificate.",
};

}  // namespace toroid
