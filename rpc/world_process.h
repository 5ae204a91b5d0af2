// One mpirun under our eyes: fork, exec, pipes, reaping, and no orphan afterwards.
//
// Between fork and exec only async-signal-safe calls are made. The child leads its own process
// group and gets SIGTERM when the thread that forked it ends. This process adopts what mpirun
// leaves behind (a child subreaper), so that a sweep finds it. One at a time; of the thread that
// made it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rpc/job.h"

namespace toroid {

class WorldProcess {
 public:
  // argv[0] is a path. environment: "NAME=value".
  static absl::StatusOr<WorldProcess> Start(const std::vector<std::string>& argv,
                                            const std::vector<std::string>& environment);
  WorldProcess(WorldProcess&& other) noexcept;
  WorldProcess& operator=(WorldProcess&& other) noexcept;
  ~WorldProcess();  // kills the group and what is left, and reaps it

  int pid() const { return pid_; }
  int exit_fd() const { return exit_fd_; }  // readable once it has ended
  int output_fd() const { return output_[0].fd; }
  int error_fd() const { return output_[1].fd; }
  // What has arrived, as lines; does not block. at_end: a last line without an end too.
  std::vector<LogLine> ReadLines(bool at_end);
  // True and *wait_status if it has ended; then it is reaped, and what it left behind is killed.
  bool Reap(int* wait_status);

 private:
  struct Pipe {
    int fd = -1;
    std::string partial;
  };
  WorldProcess() = default;
  void ReadInto(Pipe& pipe, bool error, bool at_end, std::vector<LogLine>& lines);

  int pid_ = -1;
  int exit_fd_ = -1;
  Pipe output_[2];  // stdout, stderr
};

// Kills and reaps every child of this process; `group` first as a whole.
void SweepChildren(int group);

// Of this process' environment, what a world may see: names that begin with one of a fixed list.
std::vector<std::string> AllowedEnvironment();

}  // namespace toroid
