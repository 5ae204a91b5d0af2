#include "parallel/launcher_environment.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

int64_t Number(const GetEnvironment& get, const char* name, int64_t otherwise) {
  const char* text = get(name);
  int64_t value;
  return text != nullptr && absl::SimpleAtoi(text, &value) && value >= 0 ? value : otherwise;
}

// A host in one fixed-size record, so that it can be gathered: its name, then its boot id (two
// machines may bear one name).
struct HostRecord {
  char name[128];
  char boot[40];
};

HostRecord ThisHost() {
  HostRecord host = {};
  gethostname(host.name, sizeof host.name - 1);
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  boot.get(host.boot, sizeof host.boot);
  return host;
}

}  // namespace

LauncherEnvironment DetectLauncher(const GetEnvironment& get) {
  // The innermost launcher counts: mpirun inside a Slurm job, not Slurm; and Slurm's own tasks
  // before the PMI or PMIx that it provides, since its numbers are there even when that is not.
  struct Names {
    Launcher launcher;
    const char *sign, *size, *rank, *local_rank;
  };
  static constexpr Names kLaunchers[] = {
      {Launcher::kOpenMpi, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
       "OMPI_COMM_WORLD_LOCAL_RANK"},
      {Launcher::kSlurm, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"},
      {Launcher::kPmi, "PMI_SIZE", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"},
      {Launcher::kPmix, "PMIX_RANK", "", "PMIX_RANK", ""},  // PMIx tells sizes only when asked
  };
  for (const Names& names : kLaunchers) {
    if (get(names.sign) == nullptr) continue;
    return {names.launcher, Number(get, names.size, 1), Number(get, names.rank, 0),
            Number(get, names.local_rank, 0)};
  }
  return {};
}

LauncherEnvironment ThisLauncherEnvironment() {
  return DetectLauncher([](const char* name) -> const char* { return std::getenv(name); });
}

const char* ToString(Launcher launcher) {
  switch (launcher) {
    case Launcher::kNone:
      return "no launcher";
    case Launcher::kOpenMpi:
      return "Open MPI's mpirun";
    case Launcher::kPmix:
      return "a PMIx launcher";
    case Launcher::kPmi:
      return "a PMI launcher";
    case Launcher::kSlurm:
      return "Slurm";
  }
  std::abort();
}

absl::Status CheckPromisedSize(const LauncherEnvironment& environment, int mpi_size) {
  if (mpi_size > 1 || environment.promised_size <= 1) return absl::OkStatus();
  const int64_t n = environment.promised_size;
  const std::string line =
      environment.launcher == Launcher::kSlurm
          ? absl::StrCat("srun --mpi=pmix -n ", n, " toroid ..., or mpirun -n ", n,
                         " toroid ... inside the job")
          : absl::StrCat("toroid launch -n ", n,
                         " ..., or the mpirun of the MPI that toroid was "
                         "built with");
  return absl::FailedPreconditionError(
      absl::StrCat("process ", environment.rank_hint, " is alone: ", ToString(environment.launcher),
                   " promised ", n, " ranks, MPI joined none of them: use ", line));
}

WorldHosts HostsOf(Communicator& world) {
  HostRecord mine = ThisHost();
  std::vector<HostRecord> all(world.size());
  CpuStream queue(/*inline_work=*/true);
  const int64_t bytes = sizeof(HostRecord);
  world.AllGather(Stream{&queue}, Tensor(DType::kU8, {bytes}, &mine),
                  Tensor(DType::kU8, {world.size() * bytes}, all.data()));
  WorldHosts hosts;
  hosts.local_size = 0;
  int count = 0;
  for (int r = 0; r < world.size(); ++r) {
    hosts.names.emplace_back(all[r].name, strnlen(all[r].name, sizeof all[r].name));
    int first = 0;  // the lowest rank there
    while (std::memcmp(&all[first], &all[r], sizeof(HostRecord)) != 0) ++first;
    hosts.host_of.push_back(first == r ? count++ : hosts.host_of[first]);
    if (std::memcmp(&all[r], &mine, sizeof mine) != 0) continue;
    if (r < world.rank()) ++hosts.local_rank;
    ++hosts.local_size;
  }
  return hosts;
}

int64_t AffinityCores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 1;  // more than 1,024 cores: --threads
  return std::max(1, CPU_COUNT(&mask));
}

int64_t ThreadsPerRank(int64_t cores, const WorldHosts& hosts) {
  return std::max<int64_t>(1, cores / hosts.local_size);
}

}  // namespace toroid
