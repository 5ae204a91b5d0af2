// A child process: fork and exec in one call, its output in pipes if wanted.
//
// The child gets SIGTERM when the thread that forked it ends (the parent-death signal follows the
// thread): call this from one that lives as long as the child should. Between fork and exec only
// async-signal-safe calls are made. A program that cannot be run exits with 127.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace toroid {

struct ProcessSpec {
  std::vector<std::string> argv;                          // argv[0] is a path
  const std::vector<std::string>* environment = nullptr;  // "NAME=value"; null: as ours
  bool read_output = false, read_error = false;           // in a pipe; else they go where ours go
  // It leads a process group of its own, with every signal at its default, and has nothing of ours:
  // its standard input is /dev/null, and no further descriptor stays open.
  bool detached = false;
  bool own_group = false;  // it leads a process group of its own, and that alone
};

struct StartedProcess {
  pid_t pid = -1;
  int output = -1, error = -1;  // the reading ends, for the caller to close; -1: no pipe
};

// Internal if the machine has no process or descriptor left. The caller reaps the child.
absl::StatusOr<StartedProcess> StartProcess(const ProcessSpec& spec);

}  // namespace toroid
