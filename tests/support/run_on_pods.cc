#include "tests/support/run_on_pods.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>
#include <utility>

#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

constexpr int64_t kQueueBytes = 64 << 20;

std::vector<PodRank> RanksOf(const std::vector<MeshShape>& meshes) {
  std::vector<PodRank> ranks;
  for (size_t pod = 0; pod < meshes.size(); ++pod) {
    for (int64_t rank = 0; rank < meshes[pod].size(); ++rank) {
      ranks.push_back({int64_t(pod), rank});
    }
  }
  return ranks;
}

PodIdentity IdentityOf(PodRank self) {
  PodIdentity identity;
  identity.job = "test";
  identity.self = self;
  return identity;
}

// attach: called on the rank's thread.
void RunRanks(const std::vector<MeshShape>& meshes, const PodBody& body,
              std::chrono::milliseconds deadline,
              const std::function<std::unique_ptr<PodLink>(PodRank)>& attach) {
  std::vector<std::thread> pods;
  for (size_t pod = 0; pod < meshes.size(); ++pod) {
    pods.emplace_back([&, pod] {
      RunOnRanks(
          int(meshes[pod].size()),
          [&](std::unique_ptr<Communicator> world) {
            const auto link = attach({int64_t(pod), world->rank()});
            ASSERT_NE(link, nullptr);
            body(int64_t(pod), std::move(world), *link);
          },
          deadline);
    });
  }
  for (std::thread& pod : pods) pod.join();
}

class InProcessNetwork : public PodLinkNetwork {
 public:
  explicit InProcessNetwork(int64_t queue_bytes)
      : network_(RanksOf({{4, 1, 1}, {4, 1, 1}, {4, 1, 1}}), queue_bytes) {}
  std::unique_ptr<PodLink> Attach(const PodIdentity& identity) override {
    return *network_.Attach(identity);
  }
  void Cut(PodRank a, PodRank b) override { network_.Cut(a, b); }
  void Heal(PodRank a, PodRank b) override { network_.Heal(a, b); }

 private:
  InProcessPodNetwork network_;
};

}  // namespace

void RunOnPods(const std::vector<MeshShape>& meshes, const PodBody& body,
               std::chrono::milliseconds deadline,
               const std::function<void(InProcessPodNetwork&)>& between) {
  InProcessPodNetwork network(RanksOf(meshes), kQueueBytes);
  if (between) between(network);
  RunRanks(meshes, body, deadline, [&](PodRank self) {
    auto link = network.Attach(IdentityOf(self));
    EXPECT_TRUE(link.ok()) << link.status();
    return link.ok() ? *std::move(link) : nullptr;
  });
}

void RunOnPods(const NewPodLinkNetwork& create, const std::vector<MeshShape>& meshes,
               const PodBody& body, std::chrono::milliseconds deadline) {
  const auto network = create(kQueueBytes);
  std::map<PodRank, std::unique_ptr<PodLink>> links;  // all know each other before any rank runs
  for (const PodRank self : RanksOf(meshes)) links[self] = network->Attach(IdentityOf(self));
  RunRanks(meshes, body, deadline, [&](PodRank self) { return std::move(links.at(self)); });
}

std::unique_ptr<PodLinkNetwork> NewInProcessNetwork(int64_t queue_bytes) {
  return std::make_unique<InProcessNetwork>(queue_bytes);
}

}  // namespace toroid
