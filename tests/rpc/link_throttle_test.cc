// A slow line, reproduced: what it takes, and when it is cut.
#include "rpc/link_throttle.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "absl/time/time.h"

namespace toroid {
namespace {

TEST(LinkThrottle, TakesAsLongAsTheLineSays) {
  const absl::Time begin = absl::UnixEpoch();
  LinkThrottle line({1000, absl::Milliseconds(50)}, begin);
  EXPECT_EQ(line.Send(100, begin), begin + absl::Milliseconds(150));
  EXPECT_EQ(line.Send(100, begin), begin + absl::Milliseconds(250));  // behind the first
  EXPECT_EQ(line.free_at(), begin + absl::Milliseconds(200));
  EXPECT_EQ(line.Send(100, begin + absl::Seconds(9)), begin + absl::Milliseconds(9150));
  EXPECT_FALSE(line.Cut(begin + absl::Hours(1000)));
}

TEST(LinkThrottle, JitterAndCutsAreTheSeeds) {
  ThrottleOptions options{0, absl::ZeroDuration(), absl::Seconds(1), absl::Seconds(10), 5};
  const auto run = [&](uint64_t seed) {
    options.seed = seed;
    LinkThrottle line(options, absl::UnixEpoch());
    std::vector<absl::Time> times;
    int cuts = 0;
    for (int i = 0; i < 10000; ++i) {
      const absl::Time now = absl::UnixEpoch() + absl::Seconds(i);
      times.push_back(line.Send(1, now));
      EXPECT_GE(times.back(), now);
      EXPECT_TRUE(i == 0 || times[i - 1] <= times[i]);  // in order
      cuts += line.Cut(now);
    }
    EXPECT_GT(cuts, 800);
    EXPECT_LT(cuts, 1100);
    return times;
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

// However busy the line is, and whoever looks at it how often.
TEST(LinkThrottle, CutsDoNotDependOnWhatIsSent) {
  const auto cuts = [](uint64_t seed, int sends, absl::Duration look) {
    const ThrottleOptions options{1e6, absl::ZeroDuration(), absl::Milliseconds(5),
                                  absl::Milliseconds(400), seed};
    LinkThrottle line(options, absl::UnixEpoch());
    std::set<absl::Time> times;
    const absl::Time end = absl::UnixEpoch() + absl::Seconds(20);
    for (absl::Time now = absl::UnixEpoch(); now < end; now += look) {
      for (int i = 0; i < sends; ++i) (void)line.Send(100, now);
      if (line.next_cut() < end) times.insert(line.next_cut());
      (void)line.Cut(now);
    }
    return times;
  };
  const std::set<absl::Time> idle = cuts(3, 0, absl::Milliseconds(1));
  EXPECT_GT(idle.size(), 20u);
  EXPECT_EQ(cuts(3, 2, absl::Milliseconds(1)), idle);
  for (const absl::Time seen : cuts(3, 1, absl::Milliseconds(70))) EXPECT_EQ(idle.count(seen), 1u);
  EXPECT_NE(cuts(4, 0, absl::Milliseconds(1)), idle);  // negative control
}

}  // namespace
}  // namespace toroid
