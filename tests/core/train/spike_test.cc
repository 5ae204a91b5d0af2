#include "core/train/spike.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>

#include "core/random.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Window = SkipList::Window;

constexpr SpikeRule kRule = {.window = 20,
                             .least_losses = 10,
                             .deviations = 8,
                             .least_rise = 0.5,
                             .rewind_steps = 10,
                             .skip_steps = 30,
                             .max_rewinds = 3};

TEST(SpikeRule, ComparesWithMedianAndDeviation) {
  SpikeState state;
  for (int i = 0; i < 19; ++i) {
    EXPECT_FALSE(Observe(kRule, 2 + (i % 3 - 1) * 0.1, state).spike) << i;
  }
  // Median 2, deviation 1.4826 x 0.1: eight of them are 1.186.
  SpikeState low = state, high = state;
  const SpikeVerdict verdict = Observe(kRule, 3.18, low);
  EXPECT_FALSE(verdict.spike);
  EXPECT_DOUBLE_EQ(verdict.median, 2);
  EXPECT_NEAR(verdict.threshold, 2 + 8 * 0.14826, 1e-12);
  EXPECT_TRUE(Observe(kRule, 3.19, high).spike);
  EXPECT_EQ(high, state) << "a spike is not remembered";
  EXPECT_EQ(low.losses.size(), 20u);
}

TEST(SpikeRule, AFlatLossMayStillRiseALittle) {
  SpikeState state;
  for (int i = 0; i < 20; ++i) Observe(kRule, 1.0, state);
  EXPECT_FALSE(Observe(kRule, 1.5, state).spike);
  EXPECT_TRUE(Observe(kRule, 1.51, state).spike);
}

TEST(SpikeRule, FollowsALossThatFallsAndForgets) {
  SpikeState state;
  for (int i = 0; i < 200; ++i) {
    EXPECT_FALSE(Observe(kRule, 10 * std::exp(-i / 20.0) + 2, state).spike) << i;
  }
  EXPECT_EQ(state.losses.size(), 20u);
  EXPECT_TRUE(Observe(kRule, 9, state).spike) << "the first loss, long ago";
}

TEST(SpikeRule, JudgesNoFiniteLossEarly) {
  SpikeState state;
  for (int i = 0; i < 9; ++i) Observe(kRule, 1, state);
  SpikeState other = state;
  EXPECT_FALSE(Observe(kRule, 100, other).spike);
  EXPECT_TRUE(Observe(kRule, NAN, state).spike);
  EXPECT_TRUE(Observe(kRule, INFINITY, state).spike);
  EXPECT_EQ(state.losses.size(), 9u);
}

TEST(PlanRewind, TakesTheYoungestCheckpointThatIsOldEnough) {
  const BatchRamp ramp = {{{0, 100}, {25, 200}}};
  const auto plan = PlanRewind(kRule, {}, 40, std::vector<int64_t>{0, 20, 30, 35}, ramp, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->to_step, 30);
  EXPECT_EQ(plan->first, 30);
  EXPECT_EQ(plan->end, 60);
  EXPECT_EQ(plan->rewinds, 1);
  EXPECT_THAT(plan->skipped.windows(), ElementsAre(Window{3500, 9500}));
  // The spike is always covered.
  const auto late = PlanRewind(kRule, {}, 95, std::vector<int64_t>{20}, ramp, {});
  EXPECT_EQ(late->end, 96);
}

// The run is younger than the rule reaches back, or checkpoints out of turn have pushed those out
// that it would reach.
TEST(PlanRewind, GoesToTheOldestIfNoneIsOldEnough) {
  const BatchRamp ramp = {{{0, 100}}};
  const auto early = PlanRewind(kRule, {}, 4, std::vector<int64_t>{0}, ramp, {});
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_EQ(early->to_step, 0);
  EXPECT_EQ(early->missing, 0);
  const auto young = PlanRewind(kRule, {}, 40, std::vector<int64_t>{35, 31}, ramp, {});
  ASSERT_TRUE(young.ok()) << young.status();
  EXPECT_EQ(young->to_step, 31);
  EXPECT_EQ(young->missing, 1);
  const auto old = PlanRewind(kRule, {}, 40, std::vector<int64_t>{35, 31, 30}, ramp, {});
  EXPECT_EQ(old->to_step, 30);  // control
  EXPECT_EQ(old->missing, 0);
}

TEST(PlanRewind, SaysWhyItCannot) {
  const BatchRamp ramp = {{{0, 100}}};
  const auto message = [&](const SpikeState& state, std::vector<int64_t> checkpoints) {
    return std::string(PlanRewind(kRule, state, 40, checkpoints, ramp, {}).status().message());
  };
  EXPECT_THAT(message({}, {}), HasSubstr("step 41: the loss spiked, and there is no checkpoint"));
  EXPECT_THAT(message({}, {41}), HasSubstr("there is no checkpoint"));  // of what is to come
  EXPECT_THAT(message({.rewinds = 3}, {0}), HasSubstr("spiked again after 3 rewinds"));
}

TEST(SpikeRule, WrongNumbersAreNamed) {
  const auto message = [](auto change) {
    SpikeRule rule;
    change(rule);
    return std::string(Validate(rule).message());
  };
  EXPECT_TRUE(Validate(SpikeRule{}).ok());
  EXPECT_THAT(message([](SpikeRule& r) { r.window = 0; }), HasSubstr("the window"));
  EXPECT_THAT(message([](SpikeRule& r) { r.least_losses = 101; }), HasSubstr("least number"));
  EXPECT_THAT(message([](SpikeRule& r) { r.deviations = NAN; }), HasSubstr("deviations"));
  EXPECT_THAT(message([](SpikeRule& r) { r.least_rise = -1; }), HasSubstr("rise"));
  EXPECT_THAT(message([](SpikeRule& r) { r.rewind_steps = -1; }), HasSubstr("go back"));
  EXPECT_THAT(message([](SpikeRule& r) { r.skip_steps = 0; }), HasSubstr("batches to skip"));
  EXPECT_THAT(message([](SpikeRule& r) { r.max_rewinds = -1; }), HasSubstr("most rewinds"));
}

// A run in miniature: its weights are a hash of the batches seen, its checkpoints all of its state
// but the skip list and the count of rewinds.
struct TinyRun {
  struct Checkpoint {
    uint64_t weights;
    SpikeState spikes;
  };
  uint64_t weights = 1;
  SpikeState spikes;
  SkipList skipped;
  std::map<int64_t, Checkpoint> checkpoints;
  std::vector<int64_t> batches;  // first token of the batch that each step ended up with
};

const BatchRamp kRamp = {{{0, 100}, {50, 300}}};

// `bad` is the list index of a token that makes the loss spike.
TinyRun Train(int64_t steps, SkipList skipped, std::vector<int64_t> bad) {
  TinyRun run;
  run.skipped = std::move(skipped);
  for (int64_t step = 0; step < steps;) {
    if (step % 8 == 0) run.checkpoints[step] = {run.weights, run.spikes};
    const int64_t first = run.skipped.At(kRamp.TokensBefore(step));
    double loss = 2 + 0.1 * NormalAt(3, 0, run.weights);
    for (const int64_t token : bad) {
      if (first <= token && token < first + kRamp.Tokens(step)) loss *= 10;
    }
    if (Observe(kRule, loss, run.spikes).spike) {
      std::vector<int64_t> at;
      for (const auto& [checkpoint, state] : run.checkpoints) at.push_back(checkpoint);
      const auto plan = PlanRewind(kRule, run.spikes, step, at, kRamp, run.skipped);
      if (!plan.ok()) return {};
      step = plan->to_step;
      run.weights = run.checkpoints[step].weights;
      run.spikes = run.checkpoints[step].spikes;
      run.spikes.rewinds = plan->rewinds;
      run.skipped = plan->skipped;
      run.batches.resize(step);
      continue;
    }
    run.weights = HashName(reinterpret_cast<const char*>(&first), 8) ^ (run.weights * 31);
    run.batches.push_back(first);
    ++step;
  }
  return run;
}

TEST(SpikeDrill, EqualsARunStartedWithItsSkipList) {
  // One bad batch; one before and one after the ramp; a second one right behind the first window.
  const std::vector<std::vector<int64_t>> drills = {
      {9050}, {4050, 20'000}, {9050, kRamp.TokensBefore(64 + 35)}};
  for (const auto& bad : drills) {
    const TinyRun drilled = Train(160, {}, bad);
    ASSERT_EQ(drilled.batches.size(), 160u);
    ASSERT_EQ(drilled.spikes.rewinds, int64_t(bad.size()));
    const TinyRun replayed = Train(160, drilled.skipped, bad);
    EXPECT_EQ(replayed.spikes.rewinds, 0);
    EXPECT_EQ(replayed.batches, drilled.batches);
    EXPECT_EQ(replayed.weights, drilled.weights);
    EXPECT_EQ(replayed.spikes.losses, drilled.spikes.losses);
    // Control: without the list the run is another.
    EXPECT_NE(Train(160, {}, {}).weights, drilled.weights);
  }
}

}  // namespace
}  // namespace toroid
