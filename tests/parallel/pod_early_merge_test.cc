// Where all pods' shares count whatever comes, a group is merged while others are on their way.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "parallel/pod_swap.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

// Pod 1 holds its share of group 0 back until pod 0 has merged the others, or for `patience`.
// Returns how many of the others pod 0 had not merged by then.
int64_t MergedEarly(bool go_on, std::chrono::milliseconds patience) {
  std::atomic<int64_t> merged = 0;
  int64_t early = -1;
  RunOnPods({{1, 1, 1}, {1, 1, 1}},
            [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
              Mesh mesh(std::move(world), {1, 1, 1});
              const ModelConfig config = SmallestModel();
              TrainingStore filled(mesh, config);
              ParamStore& store = *filled;
              const auto created = PodSwap::Create(link, 2, config, config.layers, store,
                                                   {ExchangeSpec(), 5, 1, go_on}, {});
              ASSERT_TRUE(created.ok()) << created.status();
              PodSwap& swap = **created;
              swap.mail().Accept(0, 1);
              const int64_t groups = store.groups().count();
              std::vector<float> values(size_t(store.groups().largest()), float(pod + 1));
              const auto offer = [&](int64_t group) {
                swap.Offer(0, group, double(pod + 1), values.data(), nullptr);
              };
              for (int64_t g = 1; g < groups; ++g) offer(g);
              if (pod == 1) {
                const auto limit = std::chrono::steady_clock::now() + patience;
                while (merged < groups - 1 && std::chrono::steady_clock::now() < limit) {
                  std::this_thread::sleep_for(std::chrono::milliseconds(1));
                }
                early = merged;
              }
              offer(0);
              swap.SendCard(PodSwap::kCard, 0, {0});
              std::vector<int64_t> order;
              const absl::Status gathered = swap.GatherEach(0, "a mean", [&](int64_t group) {
                std::vector<float> mean(values.size(), -1);
                const auto weights = swap.Merge(0, group, mean.data());
                EXPECT_TRUE(weights.ok() && *weights == 3) << weights.status();
                EXPECT_EQ(mean[0], float(5.0 / 3)) << group;
                order.push_back(group);
                if (pod == 0) ++merged;
              });
              ASSERT_TRUE(gathered.ok()) << gathered;
              for (int64_t i = 0; i < groups; ++i) EXPECT_EQ(order.at(size_t(i)), groups - 1 - i);
              EXPECT_EQ(int64_t(order.size()), groups);
            });
  EXPECT_GT(merged, 1);
  return merged - 1 - early;  // 0: all the others
}

TEST(PodEarlyMerge, GroupsAreMergedWhileOneIsOnItsWay) {
  EXPECT_EQ(MergedEarly(false, std::chrono::seconds(20)), 0);
}

// Control: whose shares count is known once all are there.
TEST(PodEarlyMerge, NotWhereAPodMayBeLeftOut) {
  EXPECT_GT(MergedEarly(true, std::chrono::milliseconds(200)), 0);
}

}  // namespace
}  // namespace toroid
