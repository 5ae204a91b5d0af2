#include "launcher/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "launcher/exit_code.h"
#include "launcher/quantity.h"

namespace toroid {
namespace {

enum Cause : int { kNone, kSignal, kTimeout };

std::atomic<int> cause{kNone};
std::atomic<bool> cancelled{false};
std::atomic<bool> requeue{false};
std::atomic<double> timeout_seconds{0};
static_assert(std::atomic<int>::is_always_lock_free);

void OnSignal(int) {
  int expected = kNone;
  cancelled = true;
  if (!cause.compare_exchange_strong(expected, kSignal) && expected == kSignal) {
    _exit(kExitInterrupted);
  }
}

void OnRequeue(int) { requeue = true; }

// Waits for the timeout, then for the end of the process; a signal shortens the wait.
void Watch(double timeout, double grace) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  while (cause == kNone) {
    int expected = kNone;
    if (timeout > 0 && since(begin) >= timeout) {
      cause.compare_exchange_strong(expected, kTimeout);
      cancelled = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(grace));
  _exit(ReportError(Interrupt::Reason()));
}

}  // namespace

void Interrupt::Install(double timeout, double grace) {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  timeout_seconds = timeout;
  std::thread(Watch, timeout, grace).detach();
}

void Interrupt::CatchRequeue() {
  struct sigaction action {};
  action.sa_handler = OnRequeue;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
}
bool Interrupt::Requeue() { return requeue; }

bool Interrupt::Cancelled() { return cancelled; }
const std::atomic<bool>* Interrupt::Flag() { return &cancelled; }

absl::Status Interrupt::Reason() {
  switch (cause.load()) {
    case kSignal:
      return absl::CancelledError("interrupted: stopped by a signal: what was made is kept");
    case kTimeout:
      return absl::DeadlineExceededError(absl::StrCat("deadline: not done within ",
                                                      FormatSeconds(timeout_seconds),
                                                      ": give a longer --timeout"));
    default:
      return absl::OkStatus();
  }
}

absl::Status Interrupt::ReasonOr(const absl::Status& status) {
  return Cancelled() ? Reason() : status;
}

}  // namespace toroid
