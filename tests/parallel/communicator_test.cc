// The conformance suite on self and on threads, and what is particular to threads.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

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

}  // namespace
}  // namespace toroid
