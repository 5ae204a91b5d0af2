// Who is told of as silent while a pod is waited for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/communicator.h"
#include "parallel/in_process_pod_link.h"
#include "parallel/pod_mail.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr PodRank kA = {0, 0}, kB = {1, 0}, kC = {2, 0};

// Pod A waits for pod B until it tells of somebody, or for two seconds if C is not stopped. B is
// there.
std::vector<int64_t> ToldWhileOneIsAwaited(bool stopped) {
  InProcessPodNetwork network({kA, kB, kC});
  std::vector<std::unique_ptr<PodLink>> links;
  for (const PodRank rank : {kA, kB, kC}) {
    auto link = network.Attach({"job", rank, 1, {}});
    EXPECT_TRUE(link.ok());
    links.push_back(*std::move(link));
  }
  for (const int peer : {1, 2}) {  // both were heard of once
    EXPECT_TRUE(links[size_t(peer)]->Send(kA, {}, absl::InfinitePast()).ok());
  }
  if (stopped) network.Stop(kC);
  std::vector<int64_t> told;
  {
    PodMail::Watch watch;
    watch.on_silent = [&told](int64_t pod) { told.push_back(pod); };
    PodMail mail(*links[0], MembershipView{1, {0, 1, 2}, {1, 1, 1}}, watch,
                 [](const MembershipView&) {});
    SelfCommunicator world;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(stopped ? 60 : 2);
    const absl::Status waited = mail.Await(world, "a share", [&]() -> int64_t {
      return !told.empty() || std::chrono::steady_clock::now() > end ? -1 : 1;
    });
    EXPECT_TRUE(waited.ok()) << waited;
  }
  if (stopped) network.Drop(kC);
  return told;
}

// The one that is waited for may itself wait for another: that one holds all up.
TEST(PodSilence, OfAnyPodIsToldWhileOneIsAwaited) {
  EXPECT_THAT(ToldWhileOneIsAwaited(/*stopped=*/true), ElementsAre(2));
  EXPECT_THAT(ToldWhileOneIsAwaited(/*stopped=*/false), IsEmpty());
}

// A rank other than the first stands still, or none: whom the two ranks of a pod that waits for its
// pod tell of. The first misses something of it, the second, which has the still one for a peer,
// does or has all it needs: the still one's share was sent before.
std::vector<std::pair<int, int64_t>> ToldByTwoRanks(bool stopped, bool second_misses) {
  const PodRank second = {1, 1};
  InProcessPodNetwork network({{0, 0}, {0, 1}, {1, 0}, second});
  std::vector<std::unique_ptr<PodLink>> theirs;
  for (const PodRank rank : {PodRank{1, 0}, second}) {
    theirs.push_back(*network.Attach({"job", rank, 1, {}}));
    // Rank r has rank r of the other pod for a peer.
    EXPECT_TRUE(theirs.back()->Send({0, rank.rank}, {}, absl::InfinitePast()).ok());
  }
  if (stopped) network.Stop(second);
  std::mutex mutex;
  std::vector<std::pair<int, int64_t>> told;  // by whom, of whom
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(stopped ? 60000 : 1800);
  RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const auto link = *network.Attach({"job", {0, rank}, 1, {}});
    PodMail::Watch watch;
    watch.on_silent = [&, rank](int64_t pod) {
      const std::lock_guard<std::mutex> lock(mutex);
      told.push_back({rank, pod});
    };
    PodMail mail(*link, MembershipView{1, {0, 1}, {1, 1}}, watch, [](const MembershipView&) {});
    const absl::Status waited = mail.Await(*world, "a share", [&]() -> int64_t {
      const std::lock_guard<std::mutex> lock(mutex);
      const bool misses = rank == 0 || second_misses;
      return misses && told.empty() && std::chrono::steady_clock::now() < end ? 1 : -1;
    });
    EXPECT_TRUE(waited.ok()) << waited;
  });
  if (stopped) network.Drop(second);
  return told;
}

// Whoever of the waiting pod has it for a peer finds out, its rank 0 tells.
TEST(PodSilence, OfAnyRankIsToldByTheFirst) {
  const auto of_pod_1 = ElementsAre(std::pair<int, int64_t>(0, 1));
  EXPECT_THAT(ToldByTwoRanks(/*stopped=*/true, /*second_misses=*/true), of_pod_1);
  EXPECT_THAT(ToldByTwoRanks(/*stopped=*/true, /*second_misses=*/false), of_pod_1);
  EXPECT_THAT(ToldByTwoRanks(/*stopped=*/false, /*second_misses=*/true), IsEmpty());
}

}  // namespace
}  // namespace toroid
