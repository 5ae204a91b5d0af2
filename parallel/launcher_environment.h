// What started this process (mpirun, srun, nothing), and which cores its rank may use.
//
// Launchers leave their promises in environment variables; MPI says what came true. `srun` without
// PMIx starts N processes that each believe to be rank 0 of 1: that is refused, by every one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/communicator.h"

namespace toroid {

enum class Launcher { kNone, kOpenMpi, kPmix, kPmi, kSlurm };

struct LauncherEnvironment {
  Launcher launcher = Launcher::kNone;
  int64_t promised_size = 1;  // ranks that the launcher says there are
  int64_t rank_hint = 0;      // for messages before MPI is up; MPI alone decides the rank
  int64_t local_rank = 0;
};

// The same environment in a test: returns null for what is not set.
using GetEnvironment = std::function<const char*(const char* name)>;
LauncherEnvironment DetectLauncher(const GetEnvironment& get);
LauncherEnvironment ThisLauncherEnvironment();
const char* ToString(Launcher launcher);

// FailedPrecondition when MPI says 1 rank where the launcher promised more; it has the line that
// works.
absl::Status CheckPromisedSize(const LauncherEnvironment& environment, int mpi_size);

// The hosts of a world.
struct WorldHosts {
  std::vector<std::string> names;  // by rank
  std::vector<int> host_of;        // by rank: 0, 1, .. in the order of their lowest rank
  int local_size = 1;              // ranks on this rank's host
  int local_rank = 0;              // this rank's place among them
};
// Collective over `world`; blocks. Ranks share a host when its name and its boot are the same.
WorldHosts HostsOf(Communicator& world);

// Cores in this process's affinity mask, at least 1.
int64_t AffinityCores();
// This rank's share of its host's cores: split evenly, at least one.
int64_t ThreadsPerRank(int64_t cores, const WorldHosts& hosts);

}  // namespace toroid
