#include "tests/support/run_on_pods.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/support/run_on_ranks.h"

namespace toroid {

void RunOnPods(const std::vector<MeshShape>& meshes,
               const std::function<void(int64_t pod, std::unique_ptr<Communicator> world,
                                        PodLink& link)>& body,
               std::chrono::milliseconds deadline,
               const std::function<void(InProcessPodNetwork&)>& between) {
  std::vector<PodRank> ranks;
  for (size_t pod = 0; pod < meshes.size(); ++pod) {
    for (int64_t rank = 0; rank < meshes[pod].size(); ++rank) {
      ranks.push_back({int64_t(pod), rank});
    }
  }
  InProcessPodNetwork network(ranks);
  if (between) between(network);
  std::vector<std::thread> pods;
  for (size_t pod = 0; pod < meshes.size(); ++pod) {
    pods.emplace_back([&, pod] {
      RunOnRanks(
          int(meshes[pod].size()),
          [&](std::unique_ptr<Communicator> world) {
            PodIdentity identity;
            identity.job = "test";
            identity.self = {int64_t(pod), world->rank()};
            auto link = network.Attach(identity);
            ASSERT_TRUE(link.ok()) << link.status();
            body(int64_t(pod), std::move(world), **link);
          },
          deadline);
    });
  }
  for (std::thread& pod : pods) pod.join();
}

}  // namespace toroid
