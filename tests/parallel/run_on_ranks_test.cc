#include "tests/support/run_on_ranks.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

namespace toroid {
namespace {

TEST(RunOnRanksTest, EveryRankRunsOnce) {
  std::atomic<int> ranks{0};
  RunOnRanks(8, [&](std::unique_ptr<Communicator> world) { ranks += 1 << world->rank(); });
  EXPECT_EQ(ranks, 255);
}

TEST(RunOnRanksTest, DeadlineNamesTheRanksThatHangAndTheirVerbs) {
  const auto hang = [] {
    RunOnRanks(
        3,
        [](std::unique_ptr<Communicator> world) {
          CpuStream queue(/*inline_work=*/true);
          const Stream s{&queue};
          char byte = 0;
          const Tensor x(DType::kU8, {1}, &byte), none;
          // Rank 0 and the others wait for each other in verbs that never meet.
          if (world->rank() == 0) world->SendRecv(s, none, 0, x, 1);
          if (world->rank() != 0) world->Barrier(s);
          EXPECT_FALSE(world->Health().ok());
        },
        std::chrono::milliseconds(200));
  };
  EXPECT_NONFATAL_FAILURE(hang(),
                          "rank 0 waits in SendRecv; rank 1 waits in Barrier; rank 2 waits in "
                          "Barrier;");
}

TEST(RunOnRanksTest, ARankThatLeavesEndsTheVerbsThatWaitForIt) {
  RunOnRanks(4, [](std::unique_ptr<Communicator> world) {
    CpuStream queue(/*inline_work=*/true);
    const Stream s{&queue};
    world->Barrier(s);
    EXPECT_TRUE(world->Health().ok()) << world->Health();
    if (world->rank() == 2) return;
    world->Barrier(s);
    EXPECT_EQ(world->Health().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(std::string(world->Health().message()), "rank 2 left the world");
  });
}

}  // namespace
}  // namespace toroid
