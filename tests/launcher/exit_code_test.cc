#include "launcher/exit_code.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "rpc/error_info.h"

namespace toroid {
namespace {

TEST(ExitCode, EveryStatusCodeHasOne) {
  const std::pair<absl::StatusCode, int> kTable[] = {
      {absl::StatusCode::kCancelled, 130},        {absl::StatusCode::kUnknown, 1},
      {absl::StatusCode::kInvalidArgument, 3},    {absl::StatusCode::kDeadlineExceeded, 124},
      {absl::StatusCode::kNotFound, 3},           {absl::StatusCode::kAlreadyExists, 3},
      {absl::StatusCode::kPermissionDenied, 3},   {absl::StatusCode::kResourceExhausted, 1},
      {absl::StatusCode::kFailedPrecondition, 3}, {absl::StatusCode::kAborted, 1},
      {absl::StatusCode::kOutOfRange, 3},         {absl::StatusCode::kUnimplemented, 3},
      {absl::StatusCode::kInternal, 1},           {absl::StatusCode::kUnavailable, 4},
      {absl::StatusCode::kDataLoss, 3},           {absl::StatusCode::kUnauthenticated, 3}};
  for (const auto& [code, exit_code] : kTable) {
    EXPECT_EQ(ExitCodeOf(absl::Status(code, "x")), exit_code) << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
}

TEST(ExitCode, AReasonTellsWhoseFaultItIs) {
  const auto code = [](absl::StatusCode status, const char* reason) {
    return ExitCodeOf(MakeError(status, "x", {reason, {}, {}}));
  };
  EXPECT_EQ(code(absl::StatusCode::kUnavailable, "NOT_REACHABLE"), 4);
  EXPECT_EQ(code(absl::StatusCode::kUnavailable, "RANK_FAILED"), 5);
  EXPECT_EQ(code(absl::StatusCode::kResourceExhausted, "TOO_FEW_SLOTS"), 3);
  EXPECT_EQ(code(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE"), 3);
  EXPECT_EQ(code(absl::StatusCode::kResourceExhausted, "QUEUE_FULL"), 1);
}

TEST(ExitCode, AnExplicitCodeWins) {
  EXPECT_EQ(ExitCodeOf(UsageError("x")), 2);
  EXPECT_EQ(ExitCodeOf(WithExitCode(absl::UnavailableError("x"), 5)), 5);
  EXPECT_EQ(ExitCodeOf(SilentExit(137)), 137);
  EXPECT_TRUE(SilentExit(0).ok());
}

TEST(ExitCode, OfAChildBecomesOneOfOurs) {
  for (int code : {0, 1, 2, 3, 4, 5, 75, 124, 130}) EXPECT_EQ(OwnExitCode(code), code);
  for (int code : {-1, 6, 77, 127, 134, 137, 143, 205, 255}) EXPECT_EQ(OwnExitCode(code), 1);
}

TEST(ExitCode, OneLineOnStderr) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(ReportError(absl::NotFoundError("no such file: /x\nreally: check the path"), true), 3);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "toroid: no such file: /x really: check the path\n");
  testing::internal::CaptureStderr();
  EXPECT_EQ(ReportError(SilentExit(7), true), 7);
  EXPECT_EQ(ReportError(absl::NotFoundError("x"), false), 3);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace toroid
