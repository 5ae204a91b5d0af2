// Policy `continue`: a pod that was lost is launched again while the others train, takes their
// state, and goes on with them.
#include "tests/parallel/pod_return_fixture.h"

namespace toroid {
namespace {

TEST_F(PodReturnTest, ReturnsInEveryMode) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    const auto pods = RunPods(kThree, {{2, 1, 6}});
    EXPECT_TRUE(absl::IsUnavailable(pods[2][0].status)) << pods[2][0].status;
    EXPECT_TRUE(pods[2][1].Notes("joined after step")) << testing::PrintToString(pods[2][1].notes);
    const int64_t first = FirstStep(pods[2][1]);
    EXPECT_GT(first, 6);
    EXPECT_LT(first, 20);
    ExpectAlike(pods, {1, 1, 2});
    // Between the loss and the return the others made merges by themselves.
    size_t fewest = 3;
    for (const MergeRecord& record : LogOf(0)) fewest = std::min(fewest, record.inputs.size());
    EXPECT_EQ(fewest, 2u);
  }
}

// The pod that gives its state, pod 0, is one that was given it; one returns twice. Each has come
// before the next one is lost.
TEST_F(PodReturnTest, AnyPodAgainAndAgain) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    const auto pods =
        RunPods(kThree, {{0, 1, 3, true, 1}, {1, 1, 9, true, 1}, {0, 2, 15, true, 1}});
    ExpectAlike(pods, {3, 2, 1});
  }
}

TEST_F(PodReturnTest, OfTwoPodsOneTrainsAlone) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    ExpectAlike(RunPods({{1, 1, 1}, {1, 1, 1}}, {{0, 1, 5}}), {2, 1});
  }
}

// Both come in one view, or one while the other is taken in.
TEST_F(PodReturnTest, TwoAtOnce) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    ExpectAlike(RunPods(kThree, {{0, 1, 5}, {2, 1, 5}}), {2, 1, 2});
  }
}

TEST_F(PodReturnTest, PodsOfSeveralRanks) {
  Use(Mode::kExact);
  ExpectAlike(RunPods({{2, 1, 1}, {2, 1, 1}, {1, 1, 2}}, {{1, 1, 6}}), {1, 2, 1});
  Use(Mode::kStreaming);
  plan_.directory = Directory("unlike");
  ExpectAlike(RunPods({{1, 1, 2}, {2, 1, 1}, {1, 1, 1}}, {{0, 1, 6, true, 1}, {1, 1, 12, true, 1}}),
              {2, 2, 1});
}

// Moments of Adafactor lie in the store as AdamW's do.
TEST_F(PodReturnTest, WithAdafactor) {
  plan_.options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
  Use(Mode::kExact);
  ExpectAlike(RunPods(kThree, {{2, 1, 6}}), {1, 1, 2});
}

// It goes on training, and its shares have the weight of what it did: never more of a step's batch
// than its part.
TEST_F(PodReturnTest, WhatItDidNotDoHasNoWeight) {
  Use(Mode::kStreaming);
  const auto pods = RunPods(kThree, {{2, 1, 6}});
  ExpectAlike(pods, {1, 1, 2});
  const int64_t first = FirstStep(pods[2][1]);
  std::map<int64_t, double> labels;  // of pod 2's second launch, by steps done
  for (const StepReport& report : pods[2][1].reports) {
    labels[report.result.step + 1] = double(report.result.labels);
  }
  std::map<int64_t, int64_t> sent;  // by fragment, the step at which it was last sent
  int64_t seen = 0;
  for (const MergeRecord& record : LogOf(0)) {
    if (record.step <= first) continue;
    double expected = 0;
    const auto before = sent.find(record.fragment);
    const int64_t since = before == sent.end() ? first : before->second;
    for (int64_t step = since + 1; step <= record.step; ++step) expected += labels[step];
    sent[record.fragment] = record.step;
    ASSERT_EQ(record.inputs.size(), 3u);
    EXPECT_EQ(record.inputs[2].weight, expected) << "step " << record.step;
    ++seen;
  }
  EXPECT_GT(seen, 2);
}

// Who was to give its state is lost: it begins once more.
TEST_F(PodReturnTest, TheGiverIsLost) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    const auto pods = RunPods(kThree, {{2, 1, 6, true, /*wait=*/0},
                                       {0, 1, 8, true, 3, How::kGiving},
                                       {2, 2, 8, true, 3, How::kByItself}});
    EXPECT_TRUE(absl::IsUnavailable(pods[0][0].status)) << pods[0][0].status;
    EXPECT_THAT(std::string(pods[2][1].status.message()),
                HasSubstr("which gave this pod its state"));
    EXPECT_TRUE(pods[2][1].reports.empty());
    ExpectAlike(pods, {2, 1, 3});
  }
}

// Who gave its state is lost: it goes on with those that are left.
TEST_F(PodReturnTest, TheGiverIsLostWhenItHasGiven) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    const auto pods =
        RunPods(kThree, {{2, 1, 6, true, /*wait=*/0}, {0, 1, 9, true, 3, How::kGave}});
    EXPECT_TRUE(absl::IsUnavailable(pods[0][0].status)) << pods[0][0].status;
    EXPECT_TRUE(pods[2][1].Notes("with the state of pod 0"));
    ExpectAlike(pods, {2, 1, 2});
  }
}

// Its lines are cut: it is alive, and silent. The others tell of it and go on; when it hears that
// it takes part no more it ends, and returns.
TEST_F(PodReturnTest, ASilentPodIsLeftOutAndReturns) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    const auto pods = RunPods(kThree, {{2, 1, 6, true, 3, How::kCut}});
    EXPECT_THAT(std::string(pods[2][0].status.message()), HasSubstr("takes part no more"));
    ExpectAlike(pods, {1, 1, 2});
    double longest = 0;
    for (const StepReport& report : pods[0][0].reports) longest = std::max(longest, report.seconds);
    EXPECT_GT(longest, 1.0);  // else it was not waited for
  }
}

// Before its share, 8 being merged, or behind it, 6 being merged when 7 are done.
TEST_F(PodReturnTest, AStepThatTakesTooLongIsNotWaitedFor) {
  ExpectNotWaitedFor(Mode::kStreaming, 6, 8);
}

using PodReturnSlow = PodReturnTest;
TEST_F(PodReturnSlow, AStepThatTakesTooLongIsNotWaitedFor) {
  ExpectNotWaitedFor(Mode::kStreaming, 7, 8);
  ExpectNotWaitedFor(Mode::kDiLoCo, 11, 12);
}

// Nothing is dropped of pods that nothing happens to.
TEST_F(PodReturnTest, NothingIsDroppedUndisturbed) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    plan_.steps = 10;
    const auto pods = RunPods(kThree, {});
    ExpectAlike(pods, {1, 1, 1});
    for (const auto& pod : pods) EXPECT_EQ(DroppedBy(pod[0]), 0);
  }
}

// Pods whose values are the same after every step wait for all, however long it takes, as do all
// with policy `halt`.
TEST_F(PodReturnSlow, SlowPodsAreWaitedFor) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    if (mode == Mode::kStreaming) plan_.options.pods.policy = PodsOptions::Policy::kHalt;
    int64_t steps = 0;  // of pod 2
    after_step_ = [&steps](int64_t pod, const StepReport&) {
      if (pod == 2 && ++steps == 11) absl::SleepFor(absl::Seconds(5));
    };
    const auto pods = RunPods(kThree, {});
    ExpectAlike(pods, {1, 1, 1});
    EXPECT_THAT(told_slow_, testing::IsEmpty());
    double longest = 0;
    for (const StepReport& report : pods[0][0].reports) longest = std::max(longest, report.seconds);
    EXPECT_GT(longest, 4.0);
  }
}

TEST_F(PodReturnTest, ASpoiltStateTakesPartInNothing) {
  ExpectSpoiltIsNoticed(Mode::kExact, 0);
  ExpectSpoiltIsNoticed(Mode::kStreaming, 1);
}

TEST_F(PodReturnSlow, ASpoiltStateTakesPartInNothing) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    for (const int32_t kind : {0, 1, 2}) ExpectSpoiltIsNoticed(mode, kind);
  }
}

// The others wait for a slow pod about a second; then it leaves out steps, and its shares weigh
// less.
TEST_F(PodReturnTest, ASlowPodDoesNotHoldUpTheOthers) {
  // Four times as slow as the others, on whatever they run.
  std::atomic<int64_t> step_ms = 100;
  absl::Time before = absl::Now();  // pod 0's
  after_step_ = [&step_ms, &before](int64_t pod, const StepReport&) {
    if (pod == 0) {
      const int64_t took =
          absl::ToInt64Milliseconds(absl::Now() - std::exchange(before, absl::Now()));
      if (took < 2000) step_ms = std::max<int64_t>(100, took);  // else it waited
    }
    if (pod == 2) absl::SleepFor(absl::Milliseconds(4 * step_ms.load()));
  };
  ExpectLeavesOutSteps(13);
}

// Behind the first merges too, of which nobody is told of.
TEST_F(PodReturnSlow, ASlowPodIsNotToldOf) {
  after_step_ = [](int64_t pod, const StepReport& report) {
    if (!report.pods->hurried) absl::SleepFor(absl::Milliseconds(pod == 2 ? 600 : 150));
  };
  ExpectLeavesOutSteps(31);
}

}  // namespace
}  // namespace toroid
