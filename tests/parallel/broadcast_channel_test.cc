// Rank 0's messages to ranks that sleep: through memory that they share, and by the communicator.
// Ranks are threads here; processes: mpi/conformance_mpi.cc.
#include "parallel/broadcast_channel.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "parallel/host_exchange.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using Sharing = BroadcastChannel::Sharing;

std::string Message(size_t bytes) {
  std::string message(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) message[i] = char(31 * i + bytes);
  return message;
}

class BroadcastChannelTest : public ::testing::TestWithParam<Sharing> {};

// Some fit in one piece or one message, some meet the border, one is longer than all slots.
TEST_P(BroadcastChannelTest, EveryRankHasEveryMessage) {
  RunOnRanks(4, [](std::unique_ptr<Communicator> world) {
    const auto channel = BroadcastChannel::Create(*world, GetParam());
    EXPECT_EQ(channel->shares(), GetParam() == Sharing::kAlways);
    for (size_t bytes : {0, 1, 3999, 4000, 4001, 16383, 16384, 16385, 700000, 5}) {
      const auto got = channel->Broadcast(world->rank() == 0 ? Message(bytes) : "");
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_TRUE(*got == Message(bytes)) << bytes << " on rank " << world->rank();
    }
  });
}

TEST_P(BroadcastChannelTest, RanksMayBeLate) {
  RunOnRanks(3, [](std::unique_ptr<Communicator> world) {
    const auto channel = BroadcastChannel::Create(*world, GetParam());
    for (int i = 0; i < 200; ++i) {
      if (i % 50 == 10 * world->rank()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      const auto got = channel->Broadcast(world->rank() == 0 ? std::to_string(i) : "");
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(*got, std::to_string(i));
    }
  });
}

TEST_P(BroadcastChannelTest, OneThatLeavesIsNamed) {
  for (const int leaves : {0, 2}) {
    RunOnRanks(3, [&](std::unique_ptr<Communicator> world) {
      auto channel = BroadcastChannel::Create(*world, GetParam());
      ASSERT_TRUE(channel->Broadcast("first").ok());
      if (world->rank() == leaves) return;
      absl::Status status;
      for (int i = 0; i < 1000 && status.ok(); ++i) status = channel->Broadcast("next").status();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_NE(status.message().find("left the world"), std::string::npos) << status;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sharing, BroadcastChannelTest,
                         ::testing::Values(Sharing::kAlways, Sharing::kNever),
                         [](const auto& info) {
                           return info.param == Sharing::kAlways ? "Memory" : "Communicator";
                         });

TEST(BroadcastChannelSharingTest, ThreadsAreSentMessages) {
  RunOnRanks(2, [](std::unique_ptr<Communicator> world) {
    EXPECT_FALSE(BroadcastChannel::Create(*world)->shares());
  });
}

// How often all ranks but the first gave up their core while they waited 0.2 s.
int64_t WakesOfSleepers(Sharing sharing) {
  int64_t wakes = 0;
  RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
    const auto channel = BroadcastChannel::Create(*world, sharing);
    ASSERT_TRUE(channel->Broadcast("").ok());
    if (world->rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    ASSERT_TRUE(channel->Broadcast("").ok());
    getrusage(RUSAGE_THREAD, &after);
    if (world->rank() == 1) wakes = after.ru_nvcsw - before.ru_nvcsw;
  });
  return wakes;
}

TEST(BroadcastChannelSharingTest, SleepersAreNotWokenForNothing) {
  EXPECT_LT(WakesOfSleepers(Sharing::kAlways), 20);
  int64_t polls = WakesOfSleepers(Sharing::kNever);  // the control: as often as they have a core
  for (int i = 0; i < 9 && polls <= 50; ++i) {
    polls = std::max(polls, WakesOfSleepers(Sharing::kNever));
  }
  EXPECT_GT(polls, 50);
}

}  // namespace
}  // namespace toroid
