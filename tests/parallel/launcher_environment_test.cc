#include "parallel/launcher_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

LauncherEnvironment Detected(const Variables& variables) {
  return DetectLauncher([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string Refusal(const Variables& variables, int mpi_size) {
  const absl::Status status = CheckPromisedSize(Detected(variables), mpi_size);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  return std::string(status.message());
}

const Variables kOpenMpi = {{"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"PMIX_RANK", "3"}};
const Variables kSlurm = {{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "5"}, {"SLURM_LOCALID", "2"}};

TEST(LauncherEnvironmentTest, DetectsEachLauncher) {
  EXPECT_EQ(Detected({}).launcher, Launcher::kNone);
  EXPECT_EQ(Detected({}).promised_size, 1);
  const LauncherEnvironment ompi = Detected(kOpenMpi);
  EXPECT_EQ(ompi.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(ompi.promised_size, 4);
  EXPECT_EQ(ompi.rank_hint, 3);
  EXPECT_EQ(ompi.local_rank, 1);
  const LauncherEnvironment slurm = Detected(kSlurm);
  EXPECT_EQ(slurm.launcher, Launcher::kSlurm);
  EXPECT_EQ(slurm.promised_size, 8);
  EXPECT_EQ(slurm.rank_hint, 5);
  EXPECT_EQ(slurm.local_rank, 2);
  EXPECT_EQ(Detected({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}).launcher, Launcher::kPmi);
  EXPECT_EQ(Detected({{"PMIX_RANK", "1"}}).launcher, Launcher::kPmix);
}

TEST(LauncherEnvironmentTest, InnermostLauncherCounts) {
  Variables both = kOpenMpi;
  both.insert(kSlurm.begin(), kSlurm.end());
  EXPECT_EQ(Detected(both).promised_size, 4);
}

TEST(LauncherEnvironmentTest, NonsenseCountsAsAlone) {
  EXPECT_EQ(Detected({{"OMPI_COMM_WORLD_SIZE", "many"}}).promised_size, 1);
  EXPECT_EQ(Detected({{"OMPI_COMM_WORLD_SIZE", "-3"}}).promised_size, 1);
}

TEST(LauncherEnvironmentTest, RefusesASingletonWhereMoreWerePromised) {
  EXPECT_THAT(Refusal(kSlurm, 1), HasSubstr("Slurm promised 8 ranks"));
  EXPECT_THAT(Refusal(kSlurm, 1), HasSubstr("srun --mpi=pmix -n 8 toroid"));
  EXPECT_THAT(Refusal(kOpenMpi, 1), HasSubstr("process 3 is alone"));
  EXPECT_THAT(Refusal(kOpenMpi, 1), HasSubstr("toroid launch -n 4"));
  EXPECT_THAT(Refusal({{"PMI_SIZE", "2"}}, 1), HasSubstr("a PMI launcher promised 2"));
}

TEST(LauncherEnvironmentTest, AcceptsWhatMpiConfirms) {
  EXPECT_TRUE(CheckPromisedSize(Detected(kSlurm), 8).ok());
  EXPECT_TRUE(CheckPromisedSize(Detected(kOpenMpi), 4).ok());
  EXPECT_TRUE(CheckPromisedSize(Detected({}), 1).ok());
  EXPECT_TRUE(CheckPromisedSize(Detected({{"OMPI_COMM_WORLD_SIZE", "1"}}), 1).ok());
}

TEST(LauncherEnvironmentTest, ThreadsOfOneProcessShareAHost) {
  RunOnRanks(3, [](std::unique_ptr<Communicator> world) {
    const WorldHosts hosts = HostsOf(*world);
    EXPECT_EQ(hosts.local_size, 3);
    EXPECT_EQ(hosts.local_rank, world->rank());
    EXPECT_EQ(hosts.host_of, std::vector<int>({0, 0, 0}));
    EXPECT_EQ(hosts.names[0], hosts.names[2]);
    EXPECT_FALSE(hosts.names[0].empty());
  });
}

TEST(LauncherEnvironmentTest, CoresAreSplitEvenlyAtLeastOne) {
  WorldHosts hosts;
  hosts.local_size = 3;
  EXPECT_EQ(ThreadsPerRank(8, hosts), 2);
  EXPECT_EQ(ThreadsPerRank(2, hosts), 1);
  EXPECT_GE(AffinityCores(), 1);
}

}  // namespace
}  // namespace toroid
