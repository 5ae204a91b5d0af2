// What the three services (controller, agent, up) share.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "rpc/job.h"
#include "rpc/link_throttle.h"

namespace toroid {

extern const OptionTable kServiceOptions;          // --end-with-parent
extern const OptionTable kTlsOptions;              // --tls-dir
extern const OptionTable kControllerOptionsTable;  // --listen --state --lease --no-reflection
extern const OptionTable kAgentOptionsTable;       // --root --stall-timeout --mpirun-arg
extern const OptionTable kSlowLinkOptions;         // --link-rate and what else makes a link slow

// --link-..: of what a rank sends to each rank of other pods.
ThrottleOptions SlowLink(const Arguments& arguments);

// --end-with-parent: SIGTERM to this process when the thread that forked it
// ends. `up` says so to its children, and it must be asked again after exec of
// a program with other rights.
void EndWithParent(const Arguments& arguments);

// --state, or $XDG_STATE_HOME/toroid, or ~/.local/state/toroid.
absl::StatusOr<std::string> StateDir(const Arguments& arguments);

// Until a signal asks this process to stop (Interrupt).
void WaitForStop();

// Every --root, its directory checked. A usage error if two have one name: jobs would see only one.
absl::StatusOr<std::vector<Root>> RootOptions(const Arguments& arguments);

// The path of the running binary.
absl::StatusOr<std::string> OwnPath();

}  // namespace toroid
