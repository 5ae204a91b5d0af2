// Exit codes of the program, and the one place where an absl::Status becomes one.
//
// 0 ok, 1 failure, 2 usage, 3 bad input or configuration, 4 service not reachable, 5 the job
// failed, 75 checkpointed after SIGUSR1: requeue me, 124 deadline, 130 interrupted.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace toroid {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,
  kExitUsage = 2,
  kExitBadInput = 3,
  kExitUnreachable = 4,
  kExitJobFailed = 5,
  kExitRequeue = 75,
  kExitDeadline = 124,
  kExitInterrupted = 130,
};

// By the status code (exit_code.cc has the table), unless WithExitCode or UsageError said
// otherwise.
int ExitCodeOf(const absl::Status& status);

// What a child's exit code becomes as ours: the same if it is one of the above, else 1.
int OwnExitCode(int code);

// The same status, leaving the program with `code`. An OK status is returned as it is.
absl::Status WithExitCode(absl::Status status, int code);

// A mistake on the command line: exit 2. message: "what happened: which thing: what to do".
absl::Status UsageError(absl::string_view message);

// False on ranks other than 0 of a world, as the launcher's environment tells: what all ranks find
// alike (a bad flag, a missing file) is said once.
bool SpeaksForWorld();

// Prints the one error line, `toroid: MESSAGE`, on stderr, unless the status is OK, SilentExit or
// not for this rank to say, and returns the exit code. Line breaks in the message become spaces.
int ReportError(const absl::Status& status, bool speak = SpeaksForWorld());

// The same status, said by this rank even if it is not rank 0: rank 0 cannot.
absl::Status SpeakAnyway(absl::Status status);

// Leaves with `code` and no line: somebody else has spoken, or the code is the answer.
absl::Status SilentExit(int code);

}  // namespace toroid
