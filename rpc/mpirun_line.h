// The mpirun or srun line that works here: how `toroid launch` and the agent start a world.
//
// Pure: what the machine looks like comes in as LaunchPlace, so that a test can be any machine. The
// line is an argv and never passes through a shell. Measured with Open MPI 4.1.4: more ranks than
// cores need --oversubscribe, root needs --allow-run-as-root, the default binding puts two one-rank
// worlds on core 0, variables reach other hosts only with -x, and a cut link is noticed after 90 s
// and more unless keepalive of its out-of-band channel is set (5 s with 2, 1, 3).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace toroid {

// What matters of this machine.
struct LaunchPlace {
  int cores = 1;                       // physical cores, as Open MPI counts its default slots
  bool root = false;                   // effective user id 0
  bool process_vm_blocked = false;     // a sandbox forbids reading a neighbour's memory
  std::string host;                    // this machine's name
  std::string mpirun;                  // path, empty: not installed
  std::string srun;                    // path, empty: not installed
  bool slurm = false;                  // inside a Slurm allocation
  int slurm_tasks = 0;                 // of the allocation; 0: not said
  std::vector<std::string> variables;  // names of the TOROID_* variables that are set
};

// Looks at the machine and the environment of this process.
LaunchPlace ThisPlace();

struct MpirunRequest {
  int ranks = 1;                     // 0: one for every slot of hosts or hostfile
  std::string hosts;                 // "a:4,b:4" (no number: one slot); empty: this machine
  std::string hostfile;              // lines "a slots=4"; at most one of hosts and hostfile
  std::vector<std::string> command;  // the program and its arguments
  bool quiet = true;                 // -q; the agent reads Open MPI's own words about a dead rank
  bool tag_output = false;           // each line of output begins with its rank and stream
  std::vector<std::string> extra;    // the operator's own arguments for mpirun, put before command
};

// Errors name both numbers or the missing thing, and the remedy: InvalidArgument (no command, fewer
// than one rank, an unreadable hosts list, neither ranks nor slots said), ResourceExhausted (too
// few slots), NotFound (hostfile), FailedPrecondition (mpirun missing).
absl::StatusOr<std::vector<std::string>> MpirunLine(const MpirunRequest& request,
                                                    const LaunchPlace& place = ThisPlace());

struct HostSlots {
  std::string host;
  int slots = 0;  // 0: not said (a hostfile line without slots=): mpirun takes the host's cores
};

// "a:4,b:4" in order.
absl::StatusOr<std::vector<HostSlots>> ParseHosts(const std::string& hosts);
// The text of a hostfile: "name slots=4" by line, # begins a comment.
absl::StatusOr<std::vector<HostSlots>> ParseHostfile(const std::string& text);

// For a person to read and paste into a shell: quoted where a shell would need it.
std::string ShellQuoted(const std::vector<std::string>& argv);

}  // namespace toroid
