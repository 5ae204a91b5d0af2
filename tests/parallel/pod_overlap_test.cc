// Shares leave while the backward still runs: a rank that is held in the lowest layer's backward
// has given its upper groups to the other pod by then.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "parallel/faulty_communicator.h"
#include "parallel/progress_board.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/train_on_pods.h"
#include "tests/support/watched_link.h"

namespace toroid {
namespace {

// What has come to a rank of gradients, by group and sender.
class Arrivals {
 public:
  void Note(const PodMessage& message) {
    if (message.kind != PodSwap::kPart || message.payload.empty()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    parts_.insert({message.fragment, message.from.rank});
    changed_.notify_all();
  }
  bool Await(int64_t group, int64_t rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] {
      return parts_.count({group, rank}) > 0;
    });
  }
  std::set<int64_t> groups() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::set<int64_t> groups;
    for (const auto& [group, rank] : parts_) groups.insert(group);
    return groups;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::pair<int64_t, int64_t>> parts_;
};

TEST(PodOverlapTest, UpperGroupsHaveComeWhileTheLowestLayersBackwardRuns) {
  constexpr int64_t kMicroBatches = 3;  // packs 0, 2 and 4 of five
  const std::vector<MeshShape> meshes = {{1, 1, 2}, {1, 1, 1}};
  const auto source = TestSource("random:tiny-gqa");
  const ParamGroups groups(source->config, ParamLayout(source->config, 0, 1), 0, 1,
                           source->config.layers);
  ASSERT_NE(groups.head(), groups.embedding());
  Arrivals arrivals;  // at pod 1
  int64_t held = 0;   // times, on pod 0's rank 0
  RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    TrainOptions options = Float64();
    options.mesh = meshes[size_t(pod)];
    options.pods.count = 2;
    ProgressBoard board;
    BoardReading last;
    if (pod == 0 && world->rank() == 0) {
      FaultyVerbs verbs;
      verbs.tensor_reduce_scatter = [&](Communicator& tensor, Stream s, Tensor x, Tensor out) {
        const BoardReading now = board.Read();
        if (std::string(now.op) == "backward" && now.layer == 0 &&
            std::exchange(last, now).sequence != now.sequence) {
          if (++held < kMicroBatches) {  // its gradient is a part of the step's
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            EXPECT_EQ(arrivals.groups(), std::set<int64_t>());
          } else {
            EXPECT_TRUE(arrivals.Await(groups.head(), 0));
            EXPECT_TRUE(arrivals.Await(groups.head(), 1));
            EXPECT_EQ(arrivals.groups(), std::set<int64_t>{groups.head()});
          }
        }
        tensor.ReduceScatter(s, Partial(x), out);
      };
      world = PlantFaults(std::move(world), std::move(verbs));
    }
    WatchedLink told(link, nullptr, [&](const PodMessage& message) { arrivals.Note(message); });
    PodLink& own = pod == 1 ? told : link;
    auto trainer =
        Trainer::Create(std::move(world), source, options, &board, Rounds, PodAccess{&own});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const auto result = (*trainer)->Step(0, AwkwardBatch(0, source->config.vocab));
    ASSERT_TRUE(result.ok()) << result.status();
  });
  EXPECT_EQ(held, kMicroBatches);
  EXPECT_EQ(arrivals.groups().size(), size_t(groups.count()));
}

}  // namespace
}  // namespace toroid
