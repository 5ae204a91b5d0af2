// Ctrl-C, SIGTERM and --timeout of a command that runs in this process.
//
// The first signal asks: Cancelled() turns true and the work stops at the next layer or token. If
// the process has not ended some seconds later, or at a second signal, it leaves at once. A timeout
// asks in the same way. SIGUSR1, for work that can be continued, asks alone. One per process;
// thread-safe.
#pragma once

#include <atomic>

#include "absl/status/status.h"

namespace toroid {

class Interrupt {
 public:
  // Installs the handlers for SIGINT and SIGTERM. timeout: seconds from now, 0 = none. grace:
  // seconds between the request to stop and the end.
  static void Install(double timeout, double grace = 5);

  static bool Cancelled();
  // The same as a flag that others can watch.
  static const std::atomic<bool>* Flag();
  // Why: OK while nothing happened, else Cancelled (exit 130) or DeadlineExceeded (exit 124).
  static absl::Status Reason();
  // Reason() if the work was asked to stop, else `status`: what a cut-off call ends with.
  static absl::Status ReasonOr(const absl::Status& status);

  // From now on SIGUSR1 asks for a checkpoint and an end that is to be continued; before, it ends
  // the process.
  static void CatchRequeue();
  static bool Requeue();
};

}  // namespace toroid
