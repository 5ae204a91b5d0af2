// The agent's process: one per pod. Dials the controller, launches worlds with mpirun, supervises
// and reaps them.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "rpc/job.h"
#include "rpc/link_throttle.h"

namespace toroid {

struct AgentOptions {
  std::string pod;                        // name, unique among the controller's pods
  std::string controller;                 // host:port
  int slots = 0;                          // ranks it can hold; 0: the hostfile's sum, or the cores
  std::string hosts, hostfile;            // at most one; empty: this machine alone
  std::vector<Root> roots;                // models and files that jobs may name; none: only random:
  std::string toroid;                     // the binary that is started as `toroid worker`
  std::string scratch_dir;                // launch files and rank records; created, mode 0700
  std::string mpirun;                     // empty: from PATH
  std::vector<std::string> mpirun_extra;  // the operator's own arguments for mpirun
  std::string tls_dir;                    // rpc/tls.h; its ranks read it too; empty: plaintext
  std::string stall_timeout = "60s";      // handed to `toroid worker --stall-timeout`
  ThrottleOptions throttle;               // of what its ranks send to other pods
};

// Runs until *stop turns true, then ends its world and returns OK. A lost controller is dialled
// again (0.1 to 2 s, with jitter); worlds are ended when the lease has run out. REQUIRES the
// calling thread to be the main thread and to stay alive: children get a parent-death signal, which
// follows the thread that forked. `registered` is called (on any thread) each time the controller
// has accepted the pod, `lost` when no controller could be reached, and why, once until the
// next registration. Errors: InvalidArgument (options), AlreadyExists (the pod's name is taken),
// FailedPrecondition (mpirun missing), those of ReadTls, Unauthenticated (TLS keeps it from the
// controller, which has not accepted it yet), Unavailable never: it dials on.
absl::Status RunAgent(
    const AgentOptions& options, const std::atomic<bool>& stop,
    const std::function<void()>& registered = [] {},
    const std::function<void(const absl::Status&)>& lost = [](const absl::Status&) {});

// "NAME=DIR" of a --root flag; DIR must exist and is made canonical.
absl::StatusOr<Root> ParseRoot(absl::string_view text);

}  // namespace toroid
