// The conformance suite on self and on threads, and what is particular to threads.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "parallel/thread_communicator.h"
#include "tests/support/communicator_conformance.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

class ThreadConformanceTest : public ::testing::TestWithParam<std::tuple<int, ConformanceCase>> {};

TEST_P(ThreadConformanceTest, Holds) {
  const auto& [ranks, conformance] = GetParam();
  RunOnRanks(ranks, [run = conformance.run](std::unique_ptr<Communicator> world) {
    run(*world);
    EXPECT_TRUE(world->Health().ok()) << world->Health();
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadConformanceTest,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 8),
                                            ::testing::ValuesIn(ConformanceCases())),
                         [](const auto& info) {
                           return std::string(std::get<1>(info.param).name) +
                                  std::to_string(std::get<0>(info.param));
                         });

TEST(SelfConformanceTest, Holds) {
  for (const ConformanceCase& conformance : ConformanceCases()) {
    SCOPED_TRACE(conformance.name);
    SelfCommunicator self;
    conformance.run(self);
  }
}

TEST(ThreadCommunicatorTest, HealthIsSticky) {
  RunOnRanks(3, [](std::unique_ptr<Communicator> world) { ExpectHealthIsSticky(*world); });
}

TEST(ThreadCommunicatorTest, RanksInDifferentVerbsFail) {
  RunOnRanks(2, [](std::unique_ptr<Communicator> world) {
    CpuStream queue(/*inline_work=*/true);
    float x[4] = {};
    const Tensor whole(DType::kF32, {4}, x);
    if (world->rank() == 0) world->AllReduce(Stream{&queue}, Partial(whole));
    if (world->rank() == 1) world->Broadcast(Stream{&queue}, whole, 0);
    EXPECT_EQ(world->Health().code(), absl::StatusCode::kInternal) << world->Health();
  });
}

// A rank that was told to give up goes on, and its memory is another's: one that comes to the same
// verb later must not read it.
TEST(ThreadCommunicatorTest, NobodyReadsTheMemoryOfOneThatGaveUp) {
  for (const bool message : {false, true}) {
    SCOPED_TRACE(message);
    std::shared_ptr<ThreadWorldMonitor> monitor;
    const auto worlds = NewThreadWorld(2, &monitor);
    std::vector<float> out[2] = {std::vector<float>(4, 1), std::vector<float>(4, 1)};
    std::vector<float> in = std::vector<float>(4, 0);
    CpuStream queues[2] = {CpuStream(/*inline_work=*/false), CpuStream(/*inline_work=*/false)};
    const auto begin = [&](int rank) {
      const Stream s{&queues[rank]};
      const Tensor mine(DType::kF32, {4}, out[rank].data()), none(DType::kF32, {0}, nullptr);
      if (!message) {
        worlds[rank]->AllReduce(s, Partial(mine));
      } else if (rank == 1) {
        worlds[1]->SendRecv(s, mine, 0, none, 0);
      } else {
        worlds[0]->SendRecv(s, none, 1, Tensor(DType::kF32, {4}, in.data()), 1);
      }
    };
    begin(1);
    EXPECT_FALSE(queues[1].Drive());
    monitor->Abandon("stalled");
    EXPECT_TRUE(queues[1].Drive());
    out[1].assign(4, 100);
    begin(0);
    EXPECT_TRUE(queues[0].Drive());
    for (const auto& world : worlds) {
      EXPECT_EQ(world->Health().code(), absl::StatusCode::kAborted) << world->Health();
    }
    EXPECT_EQ(out[0], std::vector<float>(4, 1));
    EXPECT_EQ(in, std::vector<float>(4, 0));
  }
}

}  // namespace
}  // namespace toroid
