// Policy `continue`: a pod that had no place when the others began comes later.
#include "tests/parallel/pod_return_fixture.h"

namespace toroid {
namespace {

using PodJoinTest = PodReturnTest;

// The others begin without it, whichever it is, and one may begin alone.
TEST_F(PodJoinTest, APodThatWasNeverThereJoins) {
  for (const Mode mode : {Mode::kExact, Mode::kStreaming}) {
    for (const int64_t pod : {0, 2}) {
      SCOPED_TRACE(absl::StrCat(ExchangeModeName(mode), ", pod ", pod));
      Use(mode);
      plan_.directory = Directory(absl::StrCat(ExchangeModeName(mode), "-", pod));
      const auto pods = RunPods(kThree, {{.pod = pod, .step = 5, .how = How::kAbsent}});
      ExpectAlike(pods, {pod == 0 ? 2u : 1u, 1, pod == 2 ? 2u : 1u});
      EXPECT_EQ(LogOf(1).front().inputs.size(), 2u);
      EXPECT_EQ(pods[1][0].reports.front().pods->taking_part, 2);
      EXPECT_GE(pods[size_t(pod)][1].reports.front().result.step, 5);  // it has their state
    }
  }
  Use(Mode::kExact);
  plan_.directory = Directory("alone");
  ExpectAlike(RunPods({{2, 1, 1}, {2, 1, 1}}, {{.pod = 0, .step = 3, .how = How::kAbsent}}),
              {2, 1});
}

// State to the byte; of queues, which are bounded by what can be there at once, at least a quarter
// was, and who comes has what is given to it there; what is given lacks the pads, and has a text.
TEST_F(PodJoinTest, TheExchangeTakesWhatWasForeseen) {
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    Use(mode);
    plan_.options.pods.exchange.error_feedback = mode != Mode::kExact;
    std::mutex mutex;
    std::vector<ExchangeBytes> foreseen, taken;
    at_end_ = [&](Trainer& trainer) {
      const std::lock_guard<std::mutex> lock(mutex);
      foreseen.push_back(trainer.memory().exchange);
      taken.push_back(trainer.exchange()->host_bytes());
      if (trainer.exchange()->pod() == 2) foreseen.back().queues += foreseen.back().given + 2000;
    };
    ExpectAlike(RunPods(kThree, {{.pod = 2, .step = 5, .how = How::kAbsent}}), {1, 1, 2});
    ASSERT_EQ(taken.size(), 3u);
    int64_t given = 0;
    for (size_t i = 0; i < taken.size(); ++i) {
      EXPECT_EQ(taken[i].state, foreseen[i].state);
      EXPECT_EQ(taken[i].buffers, foreseen[i].buffers);
      EXPECT_LE(taken[i].queues, foreseen[i].queues);
      EXPECT_GE(4 * taken[i].queues, foreseen[i].queues);
      given += taken[i].given;
    }
    EXPECT_LE(given, foreseen[0].given + 2000);
    EXPECT_GE(given, foreseen[0].given * 98 / 100);
  }
}

}  // namespace
}  // namespace toroid
