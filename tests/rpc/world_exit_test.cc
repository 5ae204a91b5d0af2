#include "rpc/world_exit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

namespace toroid {
namespace {

using ::testing::HasSubstr;

int Exited(int code) { return code << 8; }

std::deque<LogLine> Tail(std::initializer_list<const char*> lines) {
  std::deque<LogLine> tail;
  for (const char* line : lines) tail.push_back(ParseTaggedLine(line, true));
  return tail;
}

TEST(WorldExit, KilledRankIsNamedByMpirun) {
  const WorldExit exit =
      DescribeExit(Exited(137),
                   Tail({"Primary job  terminated normally, but 1 process returned",
                         "mpirun noticed that process rank 1 with PID 0 on node h2 exited on "
                         "signal 9 (Killed)."}),
                   {});
  EXPECT_EQ(exit.rank, 1);
  EXPECT_EQ(exit.host, "h2");
  EXPECT_EQ(exit.signal, 9);
  EXPECT_EQ(exit.exit_code, 137);
  EXPECT_THAT(exit.message, HasSubstr("rank 1 on host h2 was ended by signal 9"));
}

TEST(WorldExit, ExitCodeWithTheRanksLastWords) {
  const WorldExit exit =
      DescribeExit(Exited(3),
                   Tail({"[1,2]<stderr>:toroid: model has no layers: m: check it",
                         "  Process name: [[26688,1],2]", "  Exit code:    3"}),
                   {{2, 77, "h1"}});
  EXPECT_EQ(exit.rank, 2);
  EXPECT_EQ(exit.host, "h1");
  EXPECT_EQ(exit.exit_code, 3);
  EXPECT_EQ(exit.signal, 0);
  EXPECT_EQ(exit.message, "rank 2 on host h1 exited with code 3: model has no layers: m: check it");
}

TEST(WorldExit, AbortAndKilledMpirun) {
  EXPECT_EQ(DescribeExit(Exited(7),
                         Tail({"MPI_ABORT was invoked on rank 3 in communicator MPI_COMM_WORLD",
                               "with errorcode 7."}),
                         {})
                .rank,
            3);
  const WorldExit killed = DescribeExit(SIGKILL, {}, {});
  EXPECT_EQ(killed.signal, SIGKILL);
  EXPECT_EQ(killed.rank, -1);
  EXPECT_THAT(killed.message, HasSubstr("mpirun was ended by signal 9"));
}

TEST(WorldExit, ARankCannotSpeakForMpirun) {
  const WorldExit exit = DescribeExit(
      Exited(1), Tail({"[1,0]<stdout>:process rank 5 with PID 0 on node evil exited on signal 9"}),
      {});
  EXPECT_EQ(exit.rank, -1);
  EXPECT_EQ(exit.host, "");
}

TEST(WorldExit, TaggedLines) {
  LogLine line = ParseTaggedLine("[1,12]<stdout>:hello", true);
  EXPECT_EQ(line.rank, 12);
  EXPECT_FALSE(line.error);
  EXPECT_EQ(line.text, "hello");
  line = ParseTaggedLine("[1,x]<stdout>:hello", true);
  EXPECT_EQ(line.rank, -1);
  EXPECT_EQ(line.text, "[1,x]<stdout>:hello");
}

}  // namespace
}  // namespace toroid
