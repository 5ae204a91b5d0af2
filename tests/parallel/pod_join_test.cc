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

}  // namespace
}  // namespace toroid
