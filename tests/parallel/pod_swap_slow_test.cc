// Who is told of as slow while a merge is waited for, and who is not: parallel/pod_swap_slow.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "parallel/passing_pod_link.h"
#include "parallel/pod_swap.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using testing::IsEmpty;
using testing::IsSubsetOf;
using testing::Not;

constexpr int64_t kLast = 2;  // the merge, counted from 0, that somebody is late for
constexpr double kPatience = 0.5;
constexpr absl::Duration kLate = absl::Milliseconds(1300);

// A link that has received the last share of a pod only so much later than it came.
class ThinLink : public PassingPodLink {
 public:
  ThinLink(PodLink& link, int64_t from, absl::Duration late)
      : PassingPodLink(link), from_(from), late_(late) {}
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override {
    if (!held_.empty() && held_.front().first <= absl::Now()) {
      PodMessage message = std::move(held_.front().second);
      held_.pop_front();
      return message;
    }
    auto message = PassingPodLink::Receive(deadline);
    if (!message.ok() || !message->has_value()) return message;
    PodMessage& here = **message;
    if (here.kind != PodSwap::kPart || here.from.pod != from_ || here.step != kLast) return message;
    held_.emplace_back(absl::Now() + late_, std::move(here));
    return std::nullopt;
  }

 private:
  const int64_t from_;
  const absl::Duration late_;
  std::deque<std::pair<absl::Time, PodMessage>> held_;  // of the receiving thread
};

// In the last merge.
struct Lateness {
  int64_t pod = -1;
  absl::Duration before_share{}, behind_share{};
  int64_t thin_from = -1;  // the line to pod 0
};

// Three pods of one rank make some merges; (who told, of whom).
std::set<std::pair<int64_t, int64_t>> ToldIn(const Lateness& late) {
  std::mutex mutex;
  std::set<std::pair<int64_t, int64_t>> told;
  const ModelConfig model = SmallestModel();
  RunOnPods({{1, 1, 1}, {1, 1, 1}, {1, 1, 1}}, [&](int64_t pod, std::unique_ptr<Communicator> world,
                                                   PodLink& link) {
    Mesh mesh(std::move(world), {1, 1, 1});
    TrainingStore store(mesh, model, DType::kF64);
    ThinLink thin(link, pod == 0 ? late.thin_from : -1, kLate);
    PodSwap::Options options;
    options.spec.codec = Codec::kFp64;
    options.go_on = true;
    PodMail::Watch watch;
    watch.on_slow = [&, pod](int64_t slow, double) {
      const std::lock_guard<std::mutex> lock(mutex);
      told.insert({pod, slow});
    };
    auto swap = PodSwap::Create(thin, 3, model, model.layers, *store, options, watch);
    ASSERT_TRUE(swap.ok()) << swap.status();
    const int64_t groups = (*store).groups().count();
    for (int64_t step = 0; step <= kLast; ++step) {
      const bool is_late = step == kLast && pod == late.pod;
      if (is_late) absl::SleepFor(late.before_share);
      (*swap)->SendCard(PodSwap::kCard, step, {double(pod)});
      for (int64_t g = 0; g < groups; ++g) {
        std::vector<double> values(size_t((*store).Stored(ParamStore::Kind::kWeights, g).size()));
        (*swap)->Offer(step, g, 1, values.data(), nullptr);
      }
      if (is_late) absl::SleepFor(late.behind_share);
      const auto all = [](int64_t) { return true; };
      ASSERT_TRUE((*swap)->Gather(step, "a merge", all, kPatience).ok());
      ASSERT_TRUE((*swap)->TakeCards(PodSwap::kCard, step, {double(pod)}).ok());
      for (int64_t g = 0; g < groups; ++g) {
        std::vector<double> mean(size_t((*store).Stored(ParamStore::Kind::kWeights, g).size()));
        ASSERT_TRUE((*swap)->Merge(step, g, mean.data()).ok());
      }
    }
  });
  return told;
}

const std::set<std::pair<int64_t, int64_t>> kOfPod1 = {{0, 1}, {2, 1}};

TEST(PodSwapSlowTest, WhoHasNotDoneTheStepsOfItsShareIsToldOf) {
  Lateness late{.pod = 1};
  late.before_share = kLate;
  const auto told = ToldIn(late);
  EXPECT_THAT(told, Not(IsEmpty()));
  EXPECT_THAT(told, IsSubsetOf(kOfPod1));
}

TEST(PodSwapSlowTest, WhoHasNotDoneTheStepsBehindItsShareIsToldOf) {
  Lateness late{.pod = 1};
  late.behind_share = kLate;
  const auto told = ToldIn(late);
  EXPECT_THAT(told, Not(IsEmpty()));
  EXPECT_THAT(told, IsSubsetOf(kOfPod1));
}

// All of pods 1 and 2 is where it belongs but for one share on its way to pod 0. They wait for
// pod 0, which has told them that it waits too.
TEST(PodSwapSlowTest, WhoWaitsForAShareOnAThinLineIsNot) {
  Lateness late;
  late.thin_from = 2;
  EXPECT_THAT(ToldIn(late), IsEmpty());
}

}  // namespace
}  // namespace toroid
