// Worlds that find each other: ranks as threads, pods as groups of threads.
#include "rpc/connect_pods.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/pki.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

absl::Time Late() { return absl::Now() + absl::Seconds(30); }

// Addresses that were free a moment ago, of ports that nobody is given who asks for any.
std::vector<std::string> FreeAddresses(int count) {
  constexpr int kFirst = 10000, kCount = 20000;  // below Linux's ephemeral ports
  std::random_device random;
  std::vector<int> sockets;
  std::vector<std::string> out;
  while (out.size() < size_t(count)) {
    const int port = kFirst + int(random() % kCount);
    sockets.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    address.sin_port = htons(uint16_t(port));
    if (bind(sockets.back(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      out.push_back(absl::StrCat("127.0.0.1:", port));
    }
  }
  for (int fd : sockets) close(fd);
  return out;
}

PodIdentity Identity(int64_t pod, const std::string& term = "model: small") {
  return {"job", {pod, 0}, 1, {term}};
}

// The status of rank 0 of each pod, after `body` on every rank that has a link.
std::vector<absl::Status> RunPods(
    const std::vector<int>& ranks, const std::vector<ConnectPodsOptions>& options,
    const std::vector<std::string>& terms,
    const std::function<void(Communicator&, PodLink&)>& body = [](Communicator&, PodLink&) {}) {
  std::vector<absl::Status> statuses(ranks.size());
  std::vector<std::thread> pods;
  for (size_t pod = 0; pod < ranks.size(); ++pod) {
    pods.emplace_back([&, pod] {
      RunOnRanks(ranks[pod], [&](std::unique_ptr<Communicator> world) {
        const auto link =
            ConnectPods(*world, Identity(static_cast<int64_t>(pod), terms[pod]), options[pod]);
        if (world->rank() == 0) statuses[pod] = link.status();
        if (link.ok()) body(*world, **link);
      });
    });
  }
  for (std::thread& pod : pods) pod.join();
  return statuses;
}

// Sends to each rank of the other pods and hears from each.
void ExpectReachesAll(const std::vector<int>& ranks, Communicator& world, PodLink& link) {
  const PodRank self = link.identity().self;
  EXPECT_EQ(self.rank, world.rank());
  int expected = 0;
  for (int64_t pod = 0; pod < static_cast<int64_t>(ranks.size()); ++pod) {
    for (int64_t rank = 0; pod != self.pod && rank < ranks[pod]; ++rank, ++expected) {
      PodMessage message;
      message.step = self.pod * 10 + self.rank;
      EXPECT_TRUE(link.Send({pod, rank}, std::move(message), Late()).ok());
    }
  }
  std::set<int64_t> heard;
  for (int i = 0; i < expected; ++i) {
    const auto message = link.Receive(Late());
    ASSERT_TRUE(message.ok() && message->has_value());
    heard.insert((*message)->step);
    EXPECT_EQ((*message)->step, (*message)->from.pod * 10 + (*message)->from.rank);
  }
  EXPECT_EQ(heard.size(), static_cast<size_t>(expected));
}

TEST(ConnectPods, EveryRankReachesEveryRankOfTheOtherPods) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/connect-", getpid());
  ASSERT_TRUE(InitPki(dir).ok());
  ConnectPodsOptions options;
  options.tls = *ReadTls(*IssueCertificate(dir, "here", 1));
  std::filesystem::remove_all(dir);
  const std::vector<int> ranks = {2, 3, 1};
  options.peers = FreeAddresses(3);
  for (const bool tls : {true, false}) {
    if (!tls) {
      options.tls = Tls();
      options.peers = FreeAddresses(3);
    }
    const auto met =
        RunPods(ranks, {options, options, options}, {"v: 1", "v: 1", "v: 1"},
                [&](Communicator& world, PodLink& link) { ExpectReachesAll(ranks, world, link); });
    for (const absl::Status& status : met) EXPECT_TRUE(status.ok()) << status;
  }
}

// Pod 1 is not there: pod 2, which is, is met in the same round.
TEST(ConnectPods, WhoIsMissingTakesNoTimeOfTheOthers) {
  ConnectPodsOptions options;
  options.peers = FreeAddresses(3);
  std::atomic<bool> listens = false, done = false;
  const auto connect = [](int64_t pod, const ConnectPodsOptions& own) {
    RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
      const absl::Status status = ConnectPods(*world, Identity(pod), own).status();
      EXPECT_TRUE(absl::IsCancelled(status)) << status;
    });
  };
  std::thread other([&] {
    ConnectPodsOptions own = options;
    own.note = [&](const std::string&) { listens = true; };
    own.stop = [&] { return done.load(); };
    connect(2, own);
  });
  while (!listens) absl::SleepFor(absl::Milliseconds(1));
  std::vector<std::string> waits;
  ConnectPodsOptions own = options;
  own.note = [&](const std::string& note) { waits.push_back(note); };
  own.stop = [] { return true; };
  connect(0, own);
  done = true;
  other.join();
  EXPECT_THAT(waits, testing::ElementsAre(HasSubstr("waiting for pod 1")));
}

// What a controller does: the table comes once all pods have said where they listen.
TEST(JoinPods, EveryRankReachesEveryRankOfTheOtherPods) {
  const std::vector<int> ranks = {2, 1, 3};
  std::mutex mutex;
  std::condition_variable changed;
  PodTable table;
  std::atomic<int> statuses{0};
  std::vector<std::thread> pods;
  for (int64_t pod = 0; pod < 3; ++pod) {
    pods.emplace_back([&, pod] {
      PodsOfController controller;
      controller.tell = [&, pod](const std::vector<std::string>& addresses) {
        const std::lock_guard<std::mutex> lock(mutex);
        EXPECT_EQ(addresses.size(), static_cast<size_t>(ranks[pod]));
        table.pods.push_back({pod, 1, addresses});
        changed.notify_all();
      };
      controller.table = [&]() -> std::optional<PodTable> {
        std::unique_lock<std::mutex> lock(mutex);
        if (!changed.wait_for(lock, std::chrono::seconds(1),
                              [&] { return table.pods.size() == 3; })) {
          return std::nullopt;
        }
        return table;
      };
      RunOnRanks(ranks[pod], [&](std::unique_ptr<Communicator> world) {
        // Rank 0 alone knows which pod it is.
        const int64_t known = world->rank() == 0 ? pod : 0;
        const auto link = JoinPods(*world, Identity(known),
                                   world->rank() == 0 ? controller : PodsOfController(), {});
        ASSERT_TRUE(link.ok()) << link.status();
        EXPECT_EQ((*link)->identity().self.pod, pod);
        ExpectReachesAll(ranks, *world, **link);
        ++statuses;
      });
    });
  }
  for (std::thread& pod : pods) pod.join();
  EXPECT_EQ(statuses, 6);
}

// A pod is lost and launched again: what is sent to it after Renew comes to the new launch, on all
// ranks; without, it goes where nobody listens. The new one waits for none but those of its table.
TEST(JoinPods, RenewReachesTheLaunchThatFollows) {
  for (const bool renews : {true, false}) {
    std::mutex mutex;
    std::condition_variable changed;
    PodTable table;
    bool done = false;
    const auto controller = [&](int64_t pod, uint64_t epoch) {
      PodsOfController out;
      out.tell = [&, pod, epoch](const std::vector<std::string>& addresses) {
        const std::lock_guard<std::mutex> lock(mutex);
        std::erase_if(table.pods, [pod](const PodAddresses& each) { return each.pod == pod; });
        table.pods.push_back({pod, epoch, addresses});
        ++table.view;
        changed.notify_all();
      };
      out.table = [&, epoch]() -> std::optional<PodTable> {
        std::unique_lock<std::mutex> lock(mutex);
        const bool all = changed.wait_for(lock, std::chrono::seconds(1),
                                          [&] { return table.view >= (epoch == 2 ? 3 : 2); });
        return all ? std::optional<PodTable>(table) : std::nullopt;
      };
      return out;
    };
    const auto launch = [&](uint64_t epoch, absl::Time until) {
      std::set<int64_t> heard;
      RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
        PodIdentity identity = Identity(1);
        identity.epoch = epoch;
        const auto link = JoinPods(*world, identity, controller(1, epoch), {});
        ASSERT_TRUE(link.ok()) << link.status();
        while (heard.size() < 2) {
          const auto message = (*link)->Receive(until);
          ASSERT_TRUE(message.ok()) << message.status();
          if (!message->has_value()) break;
          heard.insert((*message)->step);
        }
      });
      return heard;
    };
    std::thread first([&] {
      RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
        const auto link = JoinPods(*world, Identity(0), controller(0, 1), {});
        ASSERT_TRUE(link.ok()) << link.status();
        const auto send = [&](int64_t step) {
          PodMessage message;
          message.step = step + world->rank();
          EXPECT_TRUE((*link)->Send({1, 0}, std::move(message), Late()).ok());
        };
        send(10);
        {
          std::unique_lock<std::mutex> lock(mutex);
          changed.wait(lock, [&] { return table.view >= 3; });
        }
        if (renews) {
          EXPECT_TRUE((*link)->Renew(*world).ok());
        }
        send(20);
        if (renews) {  // the same table: nothing changes
          EXPECT_TRUE((*link)->Renew(*world).ok());
        }
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return done; });
      });
    });
    EXPECT_THAT(launch(1, Late()), ::testing::ElementsAre(10, 11));
    const std::set<int64_t> heard = launch(2, absl::Now() + absl::Seconds(renews ? 30 : 1));
    {
      const std::lock_guard<std::mutex> lock(mutex);
      done = true;
      changed.notify_all();
    }
    first.join();
    if (renews) {
      EXPECT_THAT(heard, ::testing::ElementsAre(20, 21));
    } else {
      EXPECT_TRUE(heard.empty());
    }
  }
}

// A view of one pod alone is one: what is sent to those that have left goes nowhere, and a sender
// does not wait for room. A table that is not known yet says nothing.
TEST(JoinPods, TheLastPodOfAJobForgetsTheOthers) {
  const PodTable of_both = {2, {{0, 1, {"127.0.0.1:1"}}, {1, 1, {"127.0.0.1:1"}}}};  // nobody there
  const PodTable of_one = {3, {{0, 1, {"127.0.0.1:1"}}}};
  std::optional<PodTable> table = of_both;
  PodsOfController controller;
  controller.tell = [](const std::vector<std::string>&) {};
  controller.table = [&] { return table; };
  const SharedBytes payload = std::string(size_t{40} << 20, 'x');
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    const auto link = JoinPods(*world, Identity(0), controller, {});
    ASSERT_TRUE(link.ok()) << link.status();
    // More than the link keeps for one that does not take it.
    const auto fill = [&] {
      absl::Status sent;
      for (int i = 0; i < 3 && sent.ok(); ++i) {
        PodMessage message;
        message.payload = payload;
        sent = (*link)->Send({1, 0}, std::move(message), absl::Now() + absl::Milliseconds(50));
      }
      return sent;
    };
    EXPECT_FALSE(fill().ok());  // control: it is a peer
    table.reset();
    EXPECT_TRUE((*link)->Renew(*world).ok());
    EXPECT_FALSE(fill().ok());
    table = of_one;
    EXPECT_TRUE((*link)->Renew(*world).ok());
    EXPECT_TRUE(fill().ok());
    table = of_both;  // of the same launch: it would not know what it missed
    EXPECT_TRUE((*link)->Renew(*world).ok());
    EXPECT_TRUE(fill().ok());
    table->pods[1].epoch = 2;
    EXPECT_TRUE((*link)->Renew(*world).ok());
    EXPECT_FALSE(fill().ok());
  });
}

TEST(JoinPods, AWorldThatIsToldToStopDoesNotWaitForTheOthers) {
  PodsOfController controller;
  controller.tell = [](const std::vector<std::string>&) {};
  controller.table = [] { return std::optional<PodTable>(); };
  JoinPodsOptions options;
  std::atomic<int> ticks{0};
  options.tick = [&] { ++ticks; };
  options.stop = [&] { return ticks >= 4; };
  RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
    const absl::Status status = JoinPods(*world, Identity(0), controller, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  });
  EXPECT_GE(ticks, 4);  // on both ranks
}

TEST(ConnectPods, OtherTermsEndBothWithBothValues) {
  ConnectPodsOptions options;
  options.peers = FreeAddresses(2);
  const auto met = RunPods({2, 1}, {options, options}, {"model: small", "model: large"});
  for (const absl::Status& status : met) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.ToString(), HasSubstr("model: small"));
    EXPECT_THAT(status.ToString(), HasSubstr("model: large"));
  }
}

TEST(ConnectPods, AMissingPodIsWaitedForAndNamed) {
  ConnectPodsOptions options;
  options.peers = FreeAddresses(2);
  std::vector<std::string> notes;
  std::atomic<int> ticks{0};
  options.note = [&](const std::string& note) { notes.push_back(note); };
  options.tick = [&] { ++ticks; };
  options.stop = [&] { return ticks >= 2; };
  const auto met = RunPods({2}, {options}, {"v: 1"});
  EXPECT_EQ(met[0].code(), absl::StatusCode::kCancelled) << met[0];
  EXPECT_THAT(notes, ::testing::ElementsAre(HasSubstr("waiting for pod 1 at " + options.peers[1])));
}

TEST(ConnectPods, BadListsAreRefused) {
  const auto refused = [](std::vector<std::string> peers, int64_t pod) {
    ConnectPodsOptions options;
    options.peers = std::move(peers);
    std::string said;
    RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
      const absl::Status status = ConnectPods(*world, Identity(pod), options).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      said = status.ToString();
    });
    return said;
  };
  EXPECT_THAT(refused({"a:1", "b"}, 0), HasSubstr("'b'"));
  EXPECT_THAT(refused({"a:1", "b:0"}, 0), HasSubstr("'b:0'"));
  EXPECT_THAT(refused({"a:1", "a:1"}, 0), HasSubstr("two pods"));
  EXPECT_THAT(refused({"a:1", "b:1"}, 2), HasSubstr("pod 2 is not in the list"));
  EXPECT_THAT(refused({"a:1"}, 0), HasSubstr("pod 0 is not in the list"));
  EXPECT_THAT(refused({"0.0.0.0:1", "b:1"}, 0), HasSubstr("not loopback"));
}

}  // namespace
}  // namespace toroid
