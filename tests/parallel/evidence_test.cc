// What a rank that dies leaves: why, where it was, its stack. Each death is of a child process.
#include "parallel/evidence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace toroid {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class EvidenceDeathTest : public testing::Test {
 protected:
  EvidenceDeathTest() : directory_(testing::TempDir() + "/evidence_" + std::to_string(getpid())) {
    std::filesystem::remove_all(directory_);
  }
  std::string Text() const {
    std::ifstream file(directory_ + "/rank-0003.txt");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  // A rank that has come to layer 5 backward.
  void Work() {
    CatchFailures(&board_, 3);
    for (int64_t i = 0; i < 100; ++i) board_.At("forward", i);
    board_.At("ring", 4, 2);
    board_.At("backward", 5);
  }
  const std::string directory_;
  ProgressBoard board_;
};

TEST_F(EvidenceDeathTest, AnAbortLeavesOperationsAndStack) {
  const auto die = [&] {
    Work();
    const KeepEvidence evidence(&board_, directory_);
    std::abort();
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "");
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("rank 3"));
  EXPECT_THAT(text, HasSubstr("signal 6"));
  EXPECT_THAT(text, HasSubstr(": 102 backward layer 5\n"));
  EXPECT_THAT(text, HasSubstr(": 101 ring layer 4 round 2\n"));
  EXPECT_THAT(text, HasSubstr("forward layer 99\n"));
  EXPECT_THAT(text, Not(HasSubstr("forward layer 30\n")));  // long ago
  EXPECT_LT(text.find("backward"), text.find("ring"));
  EXPECT_GT(std::count(text.begin() + int64_t(text.find("\nstack\n")), text.end(), '\n'), 5);
}

TEST_F(EvidenceDeathTest, WhoHadTheSignalBeforeGetsItToo) {
  const auto die = [&] {
    signal(SIGTERM, [](int) { _exit(7); });
    Work();
    const KeepEvidence evidence(&board_, directory_);
    raise(SIGTERM);
  };
  EXPECT_EXIT(die(), testing::ExitedWithCode(7), "");
  EXPECT_THAT(Text(), HasSubstr("signal 15"));
}

// Control: outside of a run, and of another rank's board, nothing is left.
TEST_F(EvidenceDeathTest, NothingIsLeftOutsideOfARun) {
  const auto die = [&] {
    Work();
    { const KeepEvidence evidence(&board_, directory_); }
    const ProgressBoard other;
    const KeepEvidence not_ours(&other, directory_);
    std::abort();
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGABRT), "");
  EXPECT_FALSE(std::filesystem::exists(directory_));
}

TEST_F(EvidenceDeathTest, ErrorsAndStallsAreToldByOthers) {
  const auto tell = [&] {
    Work();
    const KeepEvidence evidence(&board_, directory_);
    evidence.Write("a peer was lost");
    if (Text().find("a peer was lost") == std::string::npos) std::exit(1);
    std::thread([] { WriteStallEvidence("rank 1 does not answer"); }).join();
    std::exit(Text().find("rank 1 does not answer") == std::string::npos ? 2 : 0);
  };
  EXPECT_EXIT(tell(), testing::ExitedWithCode(0), "");
  EXPECT_THAT(Text(), AllOf(HasSubstr("backward layer 5"), HasSubstr("\nstack\n")));
}

}  // namespace
}  // namespace toroid
