// What the exchange between pods takes, at most: memory from step to step, and bytes at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel/exchange_plan.h"
#include "parallel/outer_exchange.h"
#include "parallel/pod_exchange.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

constexpr char kModel[] = "random:tiny-gqa";
const std::vector<MeshShape> kPods = {{1, 1, 2}, {1, 1, 2}};

// As many fragments as there are layers: none is smaller.
ExchangeSpec Spec(Mode mode, Codec codec, bool error_feedback) {
  ExchangeSpec spec;
  spec.mode = mode;
  spec.codec = codec;
  spec.error_feedback = error_feedback;
  spec.every = 2;
  if (mode != Mode::kStreaming) return spec;
  spec.fragments = TestSource(kModel)->config.layers;
  spec.every = 2 * spec.fragments;
  spec.tau = 1;
  spec.alpha = 0.5;
  return spec;
}

// So many rounds, and what of the last is late.
int64_t StepsOf(const ExchangeSpec& spec, int64_t rounds) {
  return rounds * StepsOfRound(spec) + spec.tau + 1;
}

// On each rank of kPods; `after` each step, when all ranks have done it.
void Train(const ExchangeSpec& spec, int64_t steps,
           const std::function<void(Trainer& trainer, PodLink& link, int64_t steps)>& after) {
  const auto source = TestSource(kModel);
  std::barrier all(4);
  RunOnPods(kPods, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    TrainOptions options = Options(kPods[size_t(pod)], Compute::kF32);
    options.pods = {int64_t(kPods.size()), spec};
    const int64_t rank = world->rank();
    auto trainer =
        Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    const auto plan = Trainer::Foresee(rank, source, options, {{33}, {33}});  // as `toroid plan`
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->exchange, (*trainer)->memory().exchange);
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, BatchOf(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      all.arrive_and_wait();
      after(**trainer, link, step + 1);
      all.arrive_and_wait();
    }
  });
}

// Two copies, three with error feedback, and one fragment: foreseen, and as it is. Queues hold no
// more than was foreseen: own shares and, of the one peer, a message on its way out and the shares
// of two turns; of delayed a turn more of each.
TEST(ExchangeMemoryTest, IsTwoCopiesAndOneFragmentAtMost) {
  std::mutex mutex;
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    const int64_t copies = mode == Mode::kExact ? 0 : mode == Mode::kDelayed ? 1 : 2;
    for (const Codec codec : kCodecs) {
      for (const bool feedback : {false, true}) {
        if (feedback && codec != Codec::kInt8) continue;
        const ExchangeSpec spec = Spec(mode, codec, feedback);
        SCOPED_TRACE(ToString(spec));
        const ExchangeCost cost =
            CostOf(TestSource(kModel)->config,
                   {kPods, TestSource(kModel)->config.layers, false, spec}, {}, {});
        const int64_t steps = StepsOf(spec, 1);
        int64_t asked = 0;
        Train(spec, steps, [&](Trainer& trainer, PodLink&, int64_t done) {
          const std::lock_guard<std::mutex> lock(mutex);
          const ParamStore& store = trainer.store();
          std::vector<int64_t> fragments(size_t(spec.fragments), 0);
          for (int64_t g = 0; g < store.groups().count(); ++g) {
            fragments[size_t(OuterExchange::FragmentOf(store.groups(), spec.fragments, g))] +=
                store.Stored(ParamStore::Kind::kWeights, g).bytes();
          }
          const int64_t copy = std::accumulate(fragments.begin(), fragments.end(), int64_t{0});
          const int64_t fragment = *std::max_element(fragments.begin(), fragments.end());
          const ExchangeBytes foreseen = trainer.memory().exchange;
          const ExchangeBytes held = trainer.exchange()->host_bytes();
          EXPECT_EQ(foreseen.state, (copies + feedback) * copy);
          EXPECT_EQ(held.state, foreseen.state);
          EXPECT_EQ(held.buffers, foreseen.buffers);
          EXPECT_LE(held.state + held.buffers, (feedback ? 3 : 2) * copy + fragment);
          EXPECT_LE(held.queues, foreseen.queues);
          EXPECT_LE(double(foreseen.queues),
                    1.1 * double((mode == Mode::kDelayed ? 7 : 4) * cost.turn_bytes));
          EXPECT_EQ(foreseen.given + held.given, 0);
          if (done < steps) return;
          EXPECT_GT(held.queues, cost.turn_bytes / 4);  // they held something
          ++asked;
        });
        EXPECT_EQ(asked, 4);
      }
    }
  }
}

// A10: at a time a rank sends a fragment, the largest of which is what plan calls a turn; over a
// round that makes plan's bytes a step.
TEST(ExchangeMemoryTest, NoMoreThanAFragmentIsSentAtATime) {
  const auto config = TestSource(kModel)->config;
  std::mutex mutex;
  for (const Codec codec : {Codec::kBf16, Codec::kInt8, Codec::kE3m0}) {
    SCOPED_TRACE(CodecName(codec));
    const ExchangeSpec spec = Spec(Mode::kStreaming, codec, false);
    const PlannedExchange job = {kPods, config.layers, false, spec};
    const ExchangeCost cost = CostOf(config, job, {}, {});
    const auto turns = PlanTurns(config, job, 0);
    ASSERT_GT(turns.size(), 1u);
    std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> sent;  // by pod and rank
    Train(spec, StepsOf(spec, 2), [&](Trainer& trainer, PodLink& link, int64_t steps) {
      // A fragment leaves behind an even step, and is merged behind the next by all.
      if (steps % 2 == 0) return;
      const std::lock_guard<std::mutex> lock(mutex);
      sent[{trainer.exchange()->pod(), trainer.mesh().rank()}].push_back(
          link.counters().payload_sent);
    });
    ASSERT_EQ(sent.size(), 4u);
    int64_t most = 0, most_in_all = 0;
    for (const auto& [rank, total] : sent) {
      ASSERT_EQ(total.size(), 2 * turns.size() + 1);
      for (size_t i = 0; i + 1 < total.size(); ++i) {
        const int64_t turn = total[i + 1] - total[i];
        EXPECT_EQ(turn, turns[i % turns.size()][size_t(rank.second)].sent);
        most = std::max(most, turn);
      }
      most_in_all = std::max(most_in_all, total.back() - total.front());
    }
    EXPECT_EQ(most, cost.turn_bytes);
    EXPECT_EQ(double(most_in_all) / double(2 * spec.every), cost.step_bytes);
    EXPECT_LT(double(most), double(spec.every) * cost.step_bytes);  // control: not all at once
  }
}

}  // namespace
}  // namespace toroid
