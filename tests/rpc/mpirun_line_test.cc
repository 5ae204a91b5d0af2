#include "rpc/mpirun_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_join.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

LaunchPlace TwoCores() {
  LaunchPlace place;
  place.cores = 2;
  place.host = "here";
  place.mpirun = "/usr/bin/mpirun";
  return place;
}

MpirunRequest Ranks(int ranks) {
  MpirunRequest request;
  request.ranks = ranks;
  request.command = {"toroid", "generate"};
  return request;
}

std::string Line(const MpirunRequest& request, const LaunchPlace& place) {
  auto line = MpirunLine(request, place);
  return line.ok() ? absl::StrJoin(*line, " ") : std::string(line.status().ToString());
}

TEST(MpirunLine, FitsTheCores) {
  EXPECT_EQ(Line(Ranks(2), TwoCores()), "/usr/bin/mpirun -q -n 2 --bind-to none toroid generate");
}

TEST(MpirunLine, MoreRanksThanCoresOversubscribeAndYield) {
  EXPECT_EQ(Line(Ranks(4), TwoCores()),
            "/usr/bin/mpirun -q -n 4 --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 "
            "toroid generate");
}

TEST(MpirunLine, RootMustBeAllowed) {
  LaunchPlace place = TwoCores();
  place.root = true;
  EXPECT_THAT(Line(Ranks(2), place), HasSubstr(" --allow-run-as-root "));
  place.root = false;
  EXPECT_THAT(Line(Ranks(2), place), Not(HasSubstr("--allow-run-as-root")));
}

TEST(MpirunLine, OtherHostsGetKeepaliveAndVariables) {
  LaunchPlace place = TwoCores();
  place.variables = {"TOROID_ISA", "TOROID_MODELS"};
  MpirunRequest request = Ranks(4);
  request.hosts = "h1:2,h2:2";
  EXPECT_EQ(Line(request, place),
            "/usr/bin/mpirun -q -n 4 --bind-to none --host h1:2,h2:2 --map-by slot --mca "
            "mpi_yield_when_idle 1 --mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 "
            "--mca oob_tcp_keepalive_probes 3 -x TOROID_ISA -x TOROID_MODELS toroid generate");
  request.hosts = "here:2,localhost:2";  // all of it this machine: nothing to carry
  EXPECT_THAT(Line(request, place), Not(HasSubstr(" -x ")));
}

TEST(MpirunLine, TooFewSlotsNamesBothNumbers) {
  MpirunRequest request = Ranks(9);
  request.hosts = "a:4,b:4";
  auto line = MpirunLine(request, TwoCores());
  EXPECT_EQ(line.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(line.status().message()),
              HasSubstr("too few slots: 9 ranks asked for, 8 slots in a:4,b:4"));
  request.ranks = 8;
  EXPECT_TRUE(MpirunLine(request, TwoCores()).ok());
}

TEST(MpirunLine, WithoutANumberEverySlotGetsARank) {
  MpirunRequest request = Ranks(0);
  request.hosts = "h1:2,h2:3,h3";
  EXPECT_THAT(Line(request, TwoCores()), HasSubstr(" -n 6 "));
  request.hosts = "h1:2000000000,h2:2000000000";
  EXPECT_THAT(Line(request, TwoCores()), HasSubstr("too many slots: 4000000000"));
  request.hosts = "";
  EXPECT_THAT(Line(request, TwoCores()), HasSubstr("number of ranks is 0"));
  request.hostfile = ::testing::TempDir() + "/slots_not_said";
  std::ofstream(request.hostfile) << "h1 slots=2\nh2\n";
  EXPECT_THAT(Line(request, TwoCores()), HasSubstr("no number of slots: h2"));
  std::ofstream(request.hostfile) << "h1 slots=2\nh2 slots=1\n";
  EXPECT_THAT(Line(request, TwoCores()), HasSubstr(" -n 3 "));
}

TEST(MpirunLine, MissingMpirunAndMissingHostfileSaySo) {
  LaunchPlace place = TwoCores();
  place.mpirun = "";
  EXPECT_THAT(Line(Ranks(2), place), HasSubstr("mpirun not found"));
  MpirunRequest request = Ranks(2);
  request.hostfile = "/nonexistent/hosts";
  auto line = MpirunLine(request, TwoCores());
  EXPECT_EQ(line.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(line.status().message()), HasSubstr("/nonexistent/hosts"));
}

TEST(MpirunLine, InsideSlurmItIsSrun) {
  LaunchPlace place = TwoCores();
  place.slurm = true;
  place.slurm_tasks = 4;
  place.srun = "/usr/bin/srun";
  EXPECT_EQ(Line(Ranks(4), place),
            "/usr/bin/srun -n 4 --mpi=pmix --cpu-bind=none --kill-on-bad-exit=1 --quiet toroid "
            "generate");
  EXPECT_THAT(Line(Ranks(5), place), HasSubstr("5 ranks asked for, 4 slots in this Slurm"));
  place.srun = "";  // an allocation without srun in PATH: mpirun knows Slurm too
  EXPECT_THAT(Line(Ranks(2), place), HasSubstr("/usr/bin/mpirun"));
}

TEST(MpirunLine, BadRequestsAreRefused) {
  MpirunRequest request = Ranks(0);
  EXPECT_EQ(MpirunLine(request, TwoCores()).status().code(), absl::StatusCode::kInvalidArgument);
  request = Ranks(2);
  request.hosts = "a:2";
  request.hostfile = "f";
  EXPECT_EQ(MpirunLine(request, TwoCores()).status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* hosts : {"a:x", "a:0", ":2", "a:2,", "--mca:1"}) {
    EXPECT_FALSE(ParseHosts(hosts).ok()) << hosts;
  }
}

TEST(MpirunLine, Hostfile) {
  auto hosts =
      ParseHostfile("# pods\nnode1 slots=8\nnode2   slots=4 max_slots=4 # half\n\nnode3\n");
  ASSERT_TRUE(hosts.ok());
  ASSERT_EQ(hosts->size(), 3u);
  EXPECT_EQ((*hosts)[1].host, "node2");
  EXPECT_EQ((*hosts)[1].slots, 4);
  EXPECT_EQ((*hosts)[2].slots, 0);
  EXPECT_FALSE(ParseHostfile("node1 slots=many").ok());
  EXPECT_FALSE(ParseHostfile("# nothing\n").ok());
}

TEST(MpirunLine, QuotedForAShell) {
  EXPECT_EQ(ShellQuoted({"a", "b c", "it's", "--mesh", "ring=2,tensor=2", ""}),
            "a 'b c' 'it'\\''s' --mesh ring=2,tensor=2 ''");
}

}  // namespace
}  // namespace toroid
