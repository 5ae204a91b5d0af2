// Who is told of as silent while a pod is waited for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <vector>

#include "core/communicator.h"
#include "parallel/in_process_pod_link.h"
#include "parallel/pod_mail.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr PodRank kA = {0, 0}, kB = {1, 0}, kC = {2, 0};

// Pod A waits for pod B for two seconds, or until it tells of somebody. B is there; C is stopped,
// or not.
std::vector<int64_t> ToldWhileOneIsAwaited(bool stopped) {
  InProcessPodNetwork network({kA, kB, kC});
  std::vector<std::unique_ptr<PodLink>> links;
  for (const PodRank rank : {kA, kB, kC}) {
    auto link = network.Attach({"job", rank, 1, {}});
    EXPECT_TRUE(link.ok());
    links.push_back(*std::move(link));
  }
  if (stopped) network.Stop(kC);
  std::vector<int64_t> told;
  {
    PodMail::Watch watch;
    watch.on_silent = [&told](int64_t pod) { told.push_back(pod); };
    PodMail mail(*links[0], MembershipView{1, {0, 1, 2}, {1, 1, 1}}, watch,
                 [](const MembershipView&) {});
    SelfCommunicator world;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
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

}  // namespace
}  // namespace toroid
