#include "launcher/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launcher/terminal.h"

namespace toroid {
namespace {

using testing::HasSubstr;

struct Screen {
  double now = 100;
  std::string text;
  ProgressMeter Meter(ProgressMode mode, int width = 100) {
    return ProgressMeter(
        mode, width, [this](absl::string_view t) { text.append(t.data(), t.size()); },
        [this] { return now; });
  }
};

TEST(Progress, ModeFollowsFlagThenTerminal) {
  EXPECT_EQ(ChooseProgress("auto", false, true), ProgressMode::kBar);
  EXPECT_EQ(ChooseProgress("auto", false, false), ProgressMode::kNone);
  EXPECT_EQ(ChooseProgress("bar", false, false), ProgressMode::kBar);
  EXPECT_EQ(ChooseProgress("lines", false, true), ProgressMode::kLines);
  EXPECT_EQ(ChooseProgress("bar", true, true), ProgressMode::kNone);
}

TEST(Progress, BarShowsShareRateAndTimeLeft) {
  Screen screen;
  ProgressMeter meter = screen.Meter(ProgressMode::kBar);
  meter.Update("prefill", 0, 4000, "tokens");
  screen.now += 2;
  meter.Update("prefill", 1000, 4000, "tokens");
  EXPECT_THAT(screen.text, HasSubstr("prefill"));
  EXPECT_THAT(screen.text, HasSubstr("25%  1000/4000 tokens  500 tokens/s  6.0s left"));
  EXPECT_EQ(screen.text.find('\n'), std::string::npos);
  screen.text.clear();
  screen.now += 0.01;
  meter.Update("prefill", 1001, 4000, "tokens");  // sooner than a tenth of a second
  EXPECT_EQ(screen.text, "");
  meter.Clear();
  EXPECT_EQ(screen.text, "\r\033[K");
}

TEST(Progress, ADetailTakesThePlaceOfTheRate) {
  Screen screen;
  ProgressMeter meter = screen.Meter(ProgressMode::kBar, 120);
  meter.Update("train", 20, 40, "steps");  // goes on from a checkpoint
  screen.now += 10;
  meter.Update("train", 30, 40, "steps", "loss 2.3146  512 tokens/s");
  EXPECT_THAT(screen.text, HasSubstr("75%  30/40 steps  loss 2.3146  512 tokens/s  10s left"));
  meter.Update("save", 1, 2, "bytes");
  EXPECT_EQ(screen.text.rfind("loss"), screen.text.find("loss"));
}

TEST(Progress, TheBarGivesWayToTheNumbers) {
  for (const int width : {100, 80, 70, 60}) {
    Screen screen;
    ProgressMeter meter = screen.Meter(ProgressMode::kBar, width);
    meter.Update("prefill", 0, 20000, "tokens");
    screen.now += 13;
    screen.text.clear();
    meter.Update("prefill", 10000, 20000, "tokens");
    EXPECT_THAT(screen.text, HasSubstr("50%  10000/20000 tokens  769.2 tokens/s  13s left\033[K"));
    EXPECT_LT(screen.text.size(),
              static_cast<size_t>(width) + 4);  // less than the width, \r, \033[K
    EXPECT_EQ(screen.text.find('#') != std::string::npos, width > 60) << screen.text;
  }
}

TEST(Progress, LinesAreFewAndWhole) {
  Screen screen;
  ProgressMeter meter = screen.Meter(ProgressMode::kLines);
  for (int i = 0; i <= 100; ++i) {
    meter.Update("prefill", i * 10, 1000, "tokens");
    screen.now += 0.05;
  }
  EXPECT_EQ(std::count(screen.text.begin(), screen.text.end(), '\n'), 3);  // 2 s, 4 s, the end
  EXPECT_EQ(screen.text.find('\r'), std::string::npos);
  EXPECT_THAT(screen.text, HasSubstr("100%"));
}

TEST(Progress, NoneIsSilent) {
  Screen screen;
  {
    ProgressMeter meter = screen.Meter(ProgressMode::kNone);
    meter.Update("prefill", 1, 2, "tokens");
  }
  EXPECT_EQ(screen.text, "");
}

TEST(Terminal, TablesAlignNumbersRight) {
  EXPECT_EQ(Table({{"op", "rate"}, {"matmul", "9.1"}, {"rope", "10.25"}}),
            "op       rate\n"
            "matmul    9.1\n"
            "rope    10.25\n");
}

}  // namespace
}  // namespace toroid
