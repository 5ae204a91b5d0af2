// The link between threads: what all links must do, and what is its own.
#include "parallel/in_process_pod_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "core/communicator.h"
#include "parallel/passing_pod_link.h"
#include "tests/support/pod_link_conformance.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

constexpr PodRank kA = {0, 0}, kB = {1, 0};

PodIdentity Identity(PodRank self, uint64_t epoch = 1) { return {"job", self, epoch, {"v: 1"}}; }

enum class Fault { kNone, kDoubled, kLost, kSwapped, kFlipped, kUnbounded };

// Passes on; does one thing wrong to message number 30 that it takes.
class FaultyLink : public PassingPodLink {
 public:
  FaultyLink(std::unique_ptr<PodLink> link, Fault fault)
      : PassingPodLink(std::move(link)), fault_(fault) {}

  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override {
    const absl::Status status = PassingPodLink::Send(to, std::move(message), deadline);
    return fault_ == Fault::kUnbounded ? absl::OkStatus() : status;
  }
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override {
    if (kept_.has_value()) return std::exchange(kept_, std::nullopt);
    auto message = PassingPodLink::Receive(deadline);
    if (!message.ok() || !message->has_value() || ++taken_ != 30) return message;
    switch (fault_) {
      case Fault::kDoubled:
        kept_ = **message;
        break;
      case Fault::kLost:
        return PassingPodLink::Receive(deadline);
      case Fault::kSwapped:
        kept_ = **message;
        return PassingPodLink::Receive(deadline);
      case Fault::kFlipped: {
        std::string spoilt{absl::string_view((*message)->payload)};
        spoilt[0] ^= 1;
        (*message)->payload = std::move(spoilt);
        break;
      }
      default:
        break;
    }
    return message;
  }

 private:
  const Fault fault_;
  int64_t taken_ = 0;
  std::optional<PodMessage> kept_;
};

class Network : public PodLinkNetwork {
 public:
  Network(int64_t queue_bytes, Fault fault)
      : network_({{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 0}, {2, 1}}, queue_bytes), fault_(fault) {}
  std::unique_ptr<PodLink> Attach(const PodIdentity& identity) override {
    return std::make_unique<FaultyLink>(*network_.Attach(identity), fault_);
  }
  void Cut(PodRank a, PodRank b) override { network_.Cut(a, b); }
  void Heal(PodRank a, PodRank b) override { network_.Heal(a, b); }

 private:
  InProcessPodNetwork network_;
  const Fault fault_;
};

NewPodLinkNetwork NetworkWith(Fault fault) {
  return [fault](int64_t queue_bytes) { return std::make_unique<Network>(queue_bytes, fault); };
}

class Conformance : public ::testing::TestWithParam<PodLinkCase> {};

TEST_P(Conformance, Holds) { GetParam().run(NetworkWith(Fault::kNone)); }

INSTANTIATE_TEST_SUITE_P(InProcessPodLink, Conformance, ::testing::ValuesIn(PodLinkCases()),
                         [](const auto& info) { return std::string(info.param.name); });

// The suite notices links that are wrong.
TEST(InProcessPodLink, TheConformanceSuiteFindsPlantedFaults) {
  const auto failures = [](const char* name, Fault fault) {
    ::testing::TestPartResultArray results;
    {
      ::testing::ScopedFakeTestPartResultReporter reporter(
          ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &results);
      for (const PodLinkCase& c : PodLinkCases()) {
        if (std::string(c.name) == name) c.run(NetworkWith(fault));
      }
    }
    return results.size();
  };
  EXPECT_EQ(failures("LargePayloads", Fault::kNone), 0);
  EXPECT_GT(failures("SendWaitsForRoom", Fault::kUnbounded), 0);
  for (Fault fault : {Fault::kDoubled, Fault::kLost, Fault::kSwapped, Fault::kFlipped}) {
    SCOPED_TRACE(int(fault));
    EXPECT_GT(failures("ACutLosesAndDoublesNothing", fault), 0);
  }
}

TEST(InProcessPodLink, ACutLineKeepsWhatIsSentUntilItHeals) {
  InProcessPodNetwork network({kA, kB}, 1000);
  const auto a = *network.Attach(Identity(kA)), b = *network.Attach(Identity(kB));
  network.Cut(kA, kB);
  PodMessage message;
  message.payload = std::string(700, 'x');
  ASSERT_TRUE(a->Send(kB, message, absl::InfinitePast()).ok());
  EXPECT_EQ(a->Send(kB, message, absl::InfinitePast()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(b->Receive(absl::InfinitePast())->has_value());
  EXPECT_LT(b->LastHeard(kA.pod), absl::Now());
  network.Heal(kB, kA);
  EXPECT_TRUE(b->Receive(absl::InfinitePast())->has_value());
  EXPECT_FALSE(b->Receive(absl::InfinitePast())->has_value());
  EXPECT_EQ(a->counters().reconnects, 1);
  EXPECT_EQ(b->counters().reconnects, 1);
}

TEST(InProcessPodLink, ADroppedRankIsGoneAndItsNextLaunchTakesPart) {
  InProcessPodNetwork network({kA, kB});
  const auto a = *network.Attach(Identity(kA));
  const auto b = *network.Attach(Identity(kB));
  network.Drop(kB);
  EXPECT_EQ(b->Receive(absl::InfiniteFuture()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(b->Send(kA, {}, absl::InfinitePast()).code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(a->LastHeard(kB.pod), absl::Now());
  EXPECT_TRUE(a->Send(kB, {}, absl::InfinitePast()).ok());  // waits for its next launch
  const auto same = network.Attach(Identity(kB));
  EXPECT_EQ(same.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(same.status().message()), HasSubstr("epoch 1"));
  EXPECT_EQ(network.Attach(Identity({4, 0})).status().code(), absl::StatusCode::kNotFound);
  const auto next = network.Attach(Identity(kB, 2));
  ASSERT_TRUE(next.ok());
  EXPECT_TRUE((*next)->Receive(absl::InfinitePast())->has_value());
}

TEST(InProcessPodLink, AStoppedRankIsSilentUntilItGoesOn) {
  InProcessPodNetwork network({kA, kB});
  const auto a = *network.Attach(Identity(kA)), b = *network.Attach(Identity(kB));
  ASSERT_TRUE(b->Send(kA, {}, absl::InfinitePast()).ok());
  ASSERT_TRUE(a->Receive(absl::InfinitePast())->has_value());
  network.Stop(kB);
  const absl::Time heard = a->LastHeard(kB.pod);
  EXPECT_LT(heard, absl::Now());
  EXPECT_GT(heard, absl::Now() - absl::Seconds(60));
  std::atomic<bool> returned = false;
  std::thread stands([&] {
    EXPECT_TRUE(b->Send(kA, {}, absl::InfinitePast()).ok());
    returned = true;
  });
  EXPECT_FALSE(a->Receive(absl::Now() + absl::Milliseconds(20))->has_value());
  EXPECT_FALSE(returned);
  EXPECT_EQ(a->LastHeard(kB.pod), heard);
  network.Continue(kB);
  EXPECT_TRUE(a->Receive(absl::InfiniteFuture())->has_value());
  stands.join();
  EXPECT_GT(a->LastHeard(kB.pod), heard);
  // A process that is stopped can be killed.
  network.Stop(kB);
  std::thread killed([&] { EXPECT_FALSE(b->Receive(absl::InfiniteFuture()).ok()); });
  network.Drop(kB);
  killed.join();
}

TEST(InProcessPodLink, RenewTakesBackWhatWasForAnEarlierLaunch) {
  for (const bool renew : {true, false}) {
    InProcessPodNetwork network({kA, kB});
    const auto a = *network.Attach(Identity(kA));
    auto b = *network.Attach(Identity(kB));
    b.reset();
    ASSERT_TRUE(a->Send(kB, {}, absl::InfinitePast()).ok());
    b = *network.Attach(Identity(kB, 2));
    SelfCommunicator world;
    if (renew) {
      ASSERT_TRUE(a->Renew(world).ok());
    }
    EXPECT_EQ(b->Receive(absl::InfinitePast())->has_value(), !renew);
    ASSERT_TRUE(a->Send(kB, {}, absl::InfinitePast()).ok());
    ASSERT_TRUE(a->Renew(world).ok());  // the same launch: nothing changes
    EXPECT_EQ(b->Receive(absl::InfinitePast())->has_value(), renew);
  }
}

TEST(InProcessPodLink, StaleMessagesAreCounted) {
  InProcessPodNetwork network({kA, kB});
  const auto b = *network.Attach(Identity(kB));
  {
    const auto a = *network.Attach(Identity(kA, 5));
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(a->Send(kB, {}, absl::InfinitePast()).ok());
    EXPECT_TRUE(b->Receive(absl::InfinitePast())->has_value());
  }
  const auto a = *network.Attach(Identity(kA, 6));
  EXPECT_FALSE(b->Receive(absl::InfinitePast())->has_value());
  EXPECT_EQ(b->counters().stale_dropped, 2);
}

}  // namespace
}  // namespace toroid
