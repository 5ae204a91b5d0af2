#include "launcher/services.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/options.h"
#include "rpc/agent_process.h"

namespace toroid {

const OptionTable kServiceOptions = {"process",
                                     {{"--end-with-parent", ValueKind::kFlag, "", "",
                                       "stop when the process that started this does"}}};

const OptionTable kTlsOptions = {"security", {kTlsDir}};

const OptionTable kControllerOptionsTable = {
    "controller",
    {
        {"--listen", ValueKind::kText, "HOST:PORT", "127.0.0.1:7070",
         "without --tls-dir loopback only; port 0: any free one", true},
        {"--state", ValueKind::kText, "DIR", "",
         "jobs and logs; default ~/.local/state/toroid; of up: none that stays", true},
        {"--lease", ValueKind::kSeconds, "T", "15s", "an agent unheard of for so long is lost",
         true},
        {"--no-reflection", ValueKind::kFlag, "", "", "do not describe the services to grpcurl",
         true},
    }};

const OptionTable kAgentOptionsTable = {
    "worlds",
    {
        {"--root", ValueKind::kText, "NAME=DIR", "",
         "directory whose models and files jobs may name (repeat for more)", false, true},
        {"--stall-timeout", ValueKind::kSeconds, "T", "60s",
         "a world without progress for so long is ended, naming the rank", true},
        {"--mpirun-arg", ValueKind::kText, "ARG", "", "passed to mpirun as it is (repeat for more)",
         false, true},
    }};

const OptionTable kSlowLinkOptions = {
    "link between pods",
    {
        {"--link-rate", ValueKind::kBytes, "BYTES", "0",
         "a slow link, for tests: a rank sends each of the others so much a second; 0: all it can"},
        {"--link-latency", ValueKind::kSeconds, "T", "0", "the same: what is sent comes so late"},
        {"--link-jitter", ValueKind::kSeconds, "T", "0",
         "the same: and up to so much later, by chance; never before what was sent first"},
        {"--link-cuts", ValueKind::kSeconds, "T", "0",
         "the same: it is cut about so often; 0: never"},
        {"--link-seed", ValueKind::kSeed, "N", "1",
         "of that chance, and of the times of cuts; agents add the launch's epoch"},
    }};

ThrottleOptions SlowLink(const Arguments& arguments) {
  ThrottleOptions options;
  options.bytes_per_second = double(arguments.Count("--link-rate"));
  options.latency = absl::Seconds(arguments.Real("--link-latency"));
  options.jitter = absl::Seconds(arguments.Real("--link-jitter"));
  options.cut_every = absl::Seconds(arguments.Real("--link-cuts"));
  options.seed = arguments.Seed("--link-seed");
  return options;
}

void EndWithParent(const Arguments& arguments) {
  if (!arguments.Flag("--end-with-parent")) return;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
}

absl::StatusOr<std::string> StateDir(const Arguments& arguments) {
  const std::string given = arguments.Text("--state");
  if (!given.empty()) return given;
  const char* xdg = std::getenv("XDG_STATE_HOME");
  if (xdg != nullptr && *xdg != '\0') return absl::StrCat(xdg, "/toroid");
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home != '\0') return absl::StrCat(home, "/.local/state/toroid");
  return UsageError("no state directory: HOME is not set: give --state DIR");
}

absl::StatusOr<std::vector<Root>> RootOptions(const Arguments& arguments) {
  std::vector<Root> roots;
  for (const std::string& text : arguments.Texts("--root")) {
    TOROID_ASSIGN_OR_RETURN(Root root, ParseRoot(text));
    for (const Root& other : roots) {
      if (other.name != root.name) continue;
      return UsageError(absl::StrCat("--root ", root.name, " given twice: ", other.dir, " and ",
                                     root.dir, ": give each directory a name of its own"));
    }
    roots.push_back(std::move(root));
  }
  return roots;
}

void WaitForStop() {
  while (!Interrupt::Cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

absl::StatusOr<std::string> OwnPath() {
  std::array<char, 4096> path;
  const ssize_t n = readlink("/proc/self/exe", path.data(), path.size());
  if (n <= 0 || n == static_cast<ssize_t>(path.size())) {
    return absl::InternalError("cannot find the toroid binary: /proc/self/exe: mount /proc");
  }
  return std::string(path.data(), static_cast<size_t>(n));
}

}  // namespace toroid
