// Shares leave while the backward still runs: a rank that is held in the lowest layer's backward
// has given its upper groups to the other pod by then.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "parallel/faulty_communicator.h"
#include "parallel/progress_board.h"
#include "tests/support/passing_communicator.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/train_on_pods.h"
#include "tests/support/watched_link.h"

namespace toroid {
namespace {

// What has come to a rank of gradients, by group and sender.
class Arrivals {
 public:
  void Note(const PodMessage& message) {
    const bool first = message.kind == PodSwap::kRowsFirst;
    const bool last = message.kind == PodSwap::kPart || message.kind == PodSwap::kRowsRest;
    if (!(first || last) || message.payload.empty()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (first) rows_bytes_ += int64_t(message.payload.size());
    if (last) parts_.insert({message.fragment, message.from.rank});
    changed_.notify_all();
  }
  // Of messages with rows that come before the rest of their group.
  int64_t rows_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return rows_bytes_;
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
  int64_t rows_bytes_ = 0;
};

// The only rank of a world, which tells of each collective call that it has begun one.
class ToldWorld : public PassingCommunicator {
 public:
  ToldWorld(std::unique_ptr<Communicator> inner, std::function<void()> begun)
      : PassingCommunicator(std::move(inner)), begun_(std::move(begun)) {}
  using Communicator::Split;
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return std::make_unique<ToldWorld>(inner().Split(color, key), begun_);
  }

 protected:
  void DoLocalCopy(Stream s, const void* x, void* out, int64_t bytes) override {
    begun_();
    PassingCommunicator::DoLocalCopy(s, x, out, bytes);
  }

 private:
  const std::function<void()> begun_;
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

// The bytes of them that pod 1 has while the lowest layer's backward runs on pod 0, whose
// embedding is the head.
int64_t RowsAheadOfTheLowestLayer(bool told_whole) {
  const auto source = TestSource("random:tiny-mqa");
  const ModelConfig& config = source->config;
  const ParamGroups groups(config, ParamLayout(config, 0, 1), 0, 1, config.layers);
  EXPECT_EQ(groups.head(), groups.embedding());
  Arrivals arrivals;  // at pod 1
  int64_t ahead = -1;
  RunOnPods(
      {{1, 1, 1}, {1, 1, 1}}, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
        TrainOptions options = Float64();
        options.pods.count = 2;
        options.packs_per_rank = 3;  // all in one micro-batch
        ProgressBoard board;
        if (pod == 0) {
          world = std::make_unique<ToldWorld>(std::move(world), [&] {
            const BoardReading now = board.Read();
            if (std::string(now.op) != "backward" || now.layer != 0 || ahead >= 0) return;
            // What left before has come before.
            EXPECT_TRUE(arrivals.Await(groups.layer(1), 0));
            EXPECT_EQ(arrivals.groups(), std::set<int64_t>{groups.layer(1)});
            ahead = arrivals.rows_bytes();
          });
        }
        WatchedLink told(link, nullptr, [&](const PodMessage& message) { arrivals.Note(message); });
        PodLink& own = pod == 1 ? told : link;
        auto trainer =
            Trainer::Create(std::move(world), source, options, &board, Rounds, PodAccess{&own});
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        if (!told_whole) {
          (*trainer)->store().OnRowsWhole([](int64_t, const StoredRows&) {});
        }
        const auto result = (*trainer)->Step(0, AwkwardBatch(0, config.vocab));
        ASSERT_TRUE(result.ok()) << result.status();
      });
  EXPECT_EQ(arrivals.groups().size(), size_t(groups.count()));
  return ahead;
}

TEST(PodOverlapTest, RowsThatNoTokenIsOfHaveComeWhileTheLowestLayersBackwardRuns) {
  const ModelConfig config = TestSource("random:tiny-mqa")->config;
  const int64_t row_bytes = config.dim * int64_t{sizeof(double)};
  EXPECT_GE(RowsAheadOfTheLowestLayer(true), (config.vocab - 3 * 33) * row_bytes);
  EXPECT_EQ(RowsAheadOfTheLowestLayer(false), 0);  // control
}

}  // namespace
}  // namespace toroid
