#include "launcher/mpirun_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace toroid {
namespace {

using testing::HasSubstr;

const std::string kFrame(74, '-');

// What Open MPI 4.1.4 writes, framed.
std::string Framed(const std::string& text) { return kFrame + "\n" + text + "\n" + kFrame + "\n"; }

const std::string kPrimary = Framed(
    "Primary job  terminated normally, but 1 process returned\n"
    "a non-zero exit code. Per user-direction, the job has been aborted.");
const std::string kKilled =
    Framed("mpirun noticed that process rank 1 with PID 0 on node h2 exited on signal 9 (Killed).");
const std::string kExited = Framed(
    "mpirun detected that one or more processes exited with non-zero status, thus causing\n"
    "the job to be terminated. The first process to do so was:\n\n"
    "  Process name: [[9739,1],2]\n  Exit code:    7");

TEST(MpirunFilter, AKilledRankIsNamedWithHostAndSignal) {
  MpirunFilter filter;
  EXPECT_EQ(filter.Feed("before\n" + kPrimary + kKilled + "after\n"), "before\nafter\n");
  EXPECT_EQ(filter.Finish(), "");
  EXPECT_THAT(filter.Failure(), HasSubstr("rank 1 on host h2 was ended by signal 9 (Killed)"));
  EXPECT_EQ(filter.failed_rank(), 1);
  EXPECT_EQ(filter.host(), "h2");
}

TEST(MpirunFilter, ARankThatSpokeIsNotSpokenFor) {
  MpirunFilter silent;
  silent.Feed(kPrimary + kExited);
  EXPECT_THAT(silent.Failure(), HasSubstr("rank 2 ended with exit code 7"));
  MpirunFilter spoke;
  EXPECT_EQ(spoke.Feed("toroid: no such file: x: check the path\n" + kPrimary + kExited),
            "toroid: no such file: x: check the path\n");
  EXPECT_EQ(spoke.Failure(), "");
}

TEST(MpirunFilter, ByteByByteIsTheSame) {
  const std::string all = "a\n" + kPrimary + "-----\nb: 5 - 3\n" + kKilled + "\rbar 10%";
  MpirunFilter whole, bytes;
  const std::string expected = whole.Feed(all) + whole.Finish();
  std::string shown;
  for (const char c : all) shown += bytes.Feed(std::string(1, c));
  shown += bytes.Finish();
  EXPECT_EQ(expected, "a\n-----\nb: 5 - 3\n\rbar 10%");
  EXPECT_EQ(shown, expected);
  EXPECT_EQ(bytes.Failure(), whole.Failure());
}

TEST(MpirunFilter, ABarIsPassedOnBeforeItsLineEnds) {
  MpirunFilter filter;
  EXPECT_EQ(filter.Feed("\rprefill [###"), "\rprefill [###");
  EXPECT_EQ(filter.Feed("--] 20%"), "--] 20%");
  EXPECT_EQ(filter.Finish(), "");
}

TEST(MpirunFilter, OtherParagraphsBecomeOneSentence) {
  MpirunFilter filter;
  filter.Feed(
      Framed("There are not enough slots available in the system to satisfy the 30\n"
             "slots that were requested by the application:"));
  EXPECT_THAT(filter.Failure(), HasSubstr("too few slots"));
  MpirunFilter unknown;
  unknown.Feed(Framed("Something\nnew."));
  EXPECT_THAT(unknown.Failure(), HasSubstr("mpirun failed: Something new."));
}

TEST(MpirunFilter, ExitCodesAreOurs) {
  const auto code = [](const std::string& text, int mpirun) {
    MpirunFilter filter;
    filter.Feed(text);
    return filter.ExitCode(mpirun);
  };
  EXPECT_EQ(code("toroid: no such file: x: check the path\n" + kExited, 3), 3);
  EXPECT_EQ(code("toroid: deadline: x: y\n" + kExited, 124), 124);
  EXPECT_EQ(code(kExited, 7), 1);  // none of ours
  EXPECT_EQ(code(kKilled, 137), 1);
  EXPECT_EQ(code("", 137), 1);
  EXPECT_EQ(code(Framed("There are not enough slots available in the system"), 1), 3);
  EXPECT_EQ(code(Framed("ORTE was unable to reliably start one or more daemons."), 255), 3);
  EXPECT_EQ(
      code(Framed("mpirun was unable to find or could not access or execute an executable"), 134),
      3);
  EXPECT_EQ(code(Framed("Something\nnew."), 205), 1);
  EXPECT_EQ(code("", 0), 0);
}

}  // namespace
}  // namespace toroid
