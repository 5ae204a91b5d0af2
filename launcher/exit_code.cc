#include "launcher/exit_code.h"

#include <cstdio>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "parallel/launcher_environment.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

constexpr char kExitCodePayload[] = "toroid/exit-code";
constexpr char kSilentPayload[] = "toroid/silent";
constexpr char kLoudPayload[] = "toroid/loud";

}  // namespace

int ExitCodeOf(const absl::Status& status) {
  if (const auto payload = status.GetPayload(kExitCodePayload)) {
    int code;
    if (absl::SimpleAtoi(std::string(*payload), &code)) return code;
  }
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    // The request, a file or the configuration is at fault, and a repeat would fail again.
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kExitBadInput;
    case absl::StatusCode::kUnavailable: {
      // A world that died comes as Unavailable too (a retry may go through); its reason says so.
      const std::string reason = GetErrorInfo(status).reason;
      return reason.empty() || reason == "NOT_REACHABLE" ? kExitUnreachable : kExitJobFailed;
    }
    case absl::StatusCode::kDeadlineExceeded:
      return kExitDeadline;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    case absl::StatusCode::kResourceExhausted: {
      // These are the request's fault; a full queue or memory may be another's.
      const std::string reason = GetErrorInfo(status).reason;
      return reason == "TOO_FEW_SLOTS" || reason == "MESSAGE_TOO_LARGE" ? kExitBadInput
                                                                        : kExitFailure;
    }
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    default:
      return kExitFailure;
  }
}

int OwnExitCode(int code) {
  switch (code) {
    case kExitOk:
    case kExitFailure:
    case kExitUsage:
    case kExitBadInput:
    case kExitUnreachable:
    case kExitJobFailed:
    case kExitRequeue:
    case kExitDeadline:
    case kExitInterrupted:
      return code;
    default:
      return kExitFailure;
  }
}

absl::Status WithExitCode(absl::Status status, int code) {
  status.SetPayload(kExitCodePayload, absl::Cord(absl::StrCat(code)));
  return status;
}

absl::Status UsageError(absl::string_view message) {
  return WithExitCode(absl::InvalidArgumentError(message), kExitUsage);
}

absl::Status SilentExit(int code) {
  if (code == kExitOk) return absl::OkStatus();
  absl::Status status = WithExitCode(absl::UnknownError("already reported"), code);
  status.SetPayload(kSilentPayload, absl::Cord("1"));
  return status;
}

bool SpeaksForWorld() { return ThisLauncherEnvironment().rank_hint == 0; }

absl::Status SpeakAnyway(absl::Status status) {
  if (!status.ok()) status.SetPayload(kLoudPayload, absl::Cord("1"));
  return status;
}

int ReportError(const absl::Status& status, bool speak) {
  if ((speak || status.GetPayload(kLoudPayload)) && !status.ok() &&
      !status.GetPayload(kSilentPayload)) {
    std::string line = absl::StrCat("toroid: ", status.message());
    for (char& c : line) {
      if (c == '\n' || c == '\r') c = ' ';
    }
    std::fflush(stdout);
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  return ExitCodeOf(status);
}

}  // namespace toroid
