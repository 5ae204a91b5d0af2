#include "core/train/run_log.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/support/model_files.h"

namespace toroid {
namespace {

std::vector<nlohmann::json> Lines(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(RunLog, EveryLaunchAddsItsLines) {
  const TemporaryDirectory directory;
  const std::string run = directory.path() + "/run";
  for (const int64_t epoch : {1, 2}) {
    auto log = RunLog::Open(run, {"book", epoch, 3});
    ASSERT_TRUE(log.ok()) << log.status();
    ASSERT_TRUE(log->Write("begin", "a \"word\"\nof two lines, \xff", 0).ok());
    ASSERT_TRUE(log->Write("error", "", 7).ok());
  }
  EXPECT_EQ(RunLogPath(run, 3), run + "/logs/rank-0003.log");
  const auto lines = Lines(RunLogPath(run, 3));
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0]["text"], "a \"word\"\nof two lines, \uFFFD");
  EXPECT_EQ(lines[1]["event"], "error");
  EXPECT_EQ(lines[1]["step"], 7);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["job"], "book");
    EXPECT_EQ(lines[i]["rank"], 3);
    EXPECT_EQ(lines[i]["epoch"], i < 2 ? 1 : 2);
    EXPECT_TRUE(lines[i]["time"].is_string());
    if (i == 0) continue;
    EXPECT_GE(lines[i]["monotonic_s"], lines[i - 1]["monotonic_s"]);
  }
}

TEST(RunLog, WhatCannotBeWrittenIsSaidOnce) {
  EXPECT_EQ(RunLog::Open("/proc/nowhere", {}).status().code(), absl::StatusCode::kPermissionDenied);
  const TemporaryDirectory directory;
  const std::string path = RunLogPath(directory.path(), 0);
  std::filesystem::create_directories(directory.path() + "/logs");
  std::filesystem::create_symlink("/dev/full", path);
  auto log = RunLog::Open(directory.path(), {});
  ASSERT_TRUE(log.ok()) << log.status();
  const absl::Status full = log->Write("begin", "", 0);
  EXPECT_EQ(full.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(full.message().find(path), absl::string_view::npos);
  EXPECT_TRUE(log->Write("end", "", 0).ok());
}

}  // namespace
}  // namespace toroid
