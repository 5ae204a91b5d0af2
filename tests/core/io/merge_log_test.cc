// The log of merges: what is written is read, torn ends are cut off, damage is told.
#include "core/io/merge_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/support/faulty_files.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kAll = int64_t{1} << 62;

MergeRecord RecordAt(int64_t i) {
  MergeRecord record{i / 2, uint64_t(i) + 1, i % 2, {}, uint64_t(i) * 0x9e3779b97f4a7c15u};
  for (int64_t pod = 0; pod < i % 4; ++pod) {
    record.inputs.push_back(
        {pod * 2, double(100 * i + pod) / 3, uint64_t(pod) << 60 | uint64_t(i)});
  }
  return record;
}

std::vector<MergeRecord> RecordsUpTo(int64_t n) {
  std::vector<MergeRecord> records;
  for (int64_t i = 0; i < n; ++i) records.push_back(RecordAt(i));
  return records;
}

std::string BytesOf(const std::string& path) { return *ReadWhole(PosixFiles(), path, 1 << 20); }

// A log of RecordsUpTo(n).
std::string LogOf(const TemporaryDirectory& directory, int64_t n) {
  const std::string path = directory.path() + "/merges.log";
  const auto log = MergeLog::Open(PosixFiles(), path, kAll);
  EXPECT_TRUE(log.ok()) << log.status();
  for (const MergeRecord& record : RecordsUpTo(n)) EXPECT_TRUE((*log)->Append(record).ok());
  EXPECT_TRUE((*log)->Sync().ok());
  EXPECT_EQ((*log)->records(), n);
  return path;
}

TEST(MergeLog, WhatIsAppendedIsRead) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/merges.log";
  EXPECT_EQ(ReadMergeLog(PosixFiles(), path).status().code(), absl::StatusCode::kNotFound);
  LogOf(directory, 9);
  const auto read = ReadMergeLog(PosixFiles(), path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->records, RecordsUpTo(9));
  EXPECT_EQ(read->torn, 0);
  EXPECT_EQ(read->bytes, int64_t(BytesOf(path).size()));
  EXPECT_NE(read->records, RecordsUpTo(8));  // control
}

TEST(MergeLog, ARunThatGoesOnFromAStepTakesTheLaterRecordsOut) {
  const TemporaryDirectory directory;
  const std::string path = LogOf(directory, 9);
  const auto log = MergeLog::Open(PosixFiles(), path, 3);  // of steps 0, 1 and 2
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ((*log)->records(), 6);
  EXPECT_EQ(ReadMergeLog(PosixFiles(), path)->records, RecordsUpTo(6));
  ASSERT_TRUE((*log)->Append(RecordAt(6)).ok());
  ASSERT_TRUE((*log)->Sync().ok());
  EXPECT_EQ(ReadMergeLog(PosixFiles(), path)->records, RecordsUpTo(7));
}

// Cut at every byte: what was whole before is read, and the log goes on from there.
TEST(MergeLog, ATornEndIsCutOff) {
  const TemporaryDirectory directory;
  const std::string bytes = BytesOf(LogOf(directory, 4));
  std::vector<int64_t> ends;  // of records
  for (int64_t n = 0; n <= 4; ++n) {
    const TemporaryDirectory part;
    ends.push_back(int64_t(BytesOf(LogOf(part, n)).size()));
  }
  for (int64_t size = 0; size <= int64_t(bytes.size()); ++size) {
    const auto read = ParseMergeLog(absl::string_view(bytes).substr(0, size), "f");
    ASSERT_TRUE(read.ok()) << read.status();
    int64_t whole = 0;
    while (whole < 4 && ends[whole + 1] <= size) ++whole;
    EXPECT_EQ(read->records, RecordsUpTo(whole));
    EXPECT_EQ(read->torn, size < ends[0] ? size : size - ends[whole]);
  }
  // Zeros that were never written over, and a last record whose bytes did not all arrive.
  EXPECT_EQ(ParseMergeLog(bytes + std::string(100, '\0'), "f")->torn, 100);
  std::string half = bytes;
  half.replace(half.size() - 20, 20, std::string(20, '\0'));
  EXPECT_EQ(ParseMergeLog(half, "f")->records, RecordsUpTo(3));

  const std::string path = directory.Write("torn.log", bytes.substr(0, bytes.size() - 1));
  const auto log = MergeLog::Open(PosixFiles(), path, kAll);
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE((*log)->Append(RecordAt(3)).ok());
  ASSERT_TRUE((*log)->Sync().ok());
  EXPECT_EQ(BytesOf(path), bytes);
}

TEST(MergeLog, DamageBeforeTheEndIsTold) {
  const TemporaryDirectory directory;
  const std::string bytes = BytesOf(LogOf(directory, 4));
  const TemporaryDirectory part;
  const size_t last = BytesOf(LogOf(part, 3)).size();  // where the last record begins
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = char(damaged[at] ^ 0x10);
    const auto read = ParseMergeLog(damaged, "runs/a");
    ASSERT_EQ(read.ok(), at >= last + 4) << at;  // of the last record's end who knows
    if (read.ok()) {
      EXPECT_EQ(read->records, RecordsUpTo(3));
      EXPECT_GT(read->torn, 0);
      continue;
    }
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("runs/a"));
  }
  std::string damaged = bytes;
  damaged[40] ^= 1;
  EXPECT_FALSE(ParseMergeLog(damaged, "f").ok());
  EXPECT_TRUE(ParseMergeLog(bytes, "f").ok());  // control
  // Nor is it written over.
  const std::string path = directory.Write("damaged.log", damaged);
  EXPECT_EQ(MergeLog::Open(PosixFiles(), path, kAll).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(BytesOf(path), damaged);
}

TEST(MergeLog, OnlyRecordsThatCanBeReadAreWritten) {
  const TemporaryDirectory directory;
  const auto log = MergeLog::Open(PosixFiles(), directory.path() + "/l", kAll);
  ASSERT_TRUE(log.ok());
  const MergeRecord wrong[] = {{-1, 0, 0, {}, 0},
                               {0, 0, -1, {}, 0},
                               {0, 0, int64_t{1} << 32, {}, 0},
                               {0, 0, 0, {{0, NAN, 0}}, 0},
                               {0, 0, 0, {{0, -1, 0}}, 0},
                               {0, 0, 0, {{1, 1, 0}, {1, 1, 0}}, 0},
                               {0, 0, 0, {{-1, 1, 0}}, 0},
                               {0, 0, 0, std::vector<MergeInput>(kMostMergeInputs + 1), 0}};
  for (const MergeRecord& record : wrong) {
    EXPECT_EQ((*log)->Append(record).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ((*log)->records(), 0);
  EXPECT_TRUE((*log)->Append(RecordAt(3)).ok());
}

// A writer killed at any call leaves a log that holds what was synced before.
TEST(MergeLog, AKilledWriterLosesNothingThatWasSynced) {
  for (int64_t call = 1; call < 16; ++call) {
    const TemporaryDirectory directory, graveyard;
    const std::string path = LogOf(directory, 5);
    FaultyFiles files(PosixFiles(), graveyard.path());
    files.KillAt(call);
    int64_t synced = 5;
    bool failed = false;
    {
      const auto log = MergeLog::Open(files, path, kAll);
      failed = !log.ok();
      for (int64_t i = 5; !failed && i < 8; ++i) {
        failed = !(*log)->Append(RecordAt(i)).ok() || !(*log)->Sync().ok();
        if (!failed) synced = i + 1;
        if (failed) {
          EXPECT_FALSE((*log)->Append(RecordAt(i)).ok());  // the error stays
        }
      }
    }
    files.LosePower();
    const auto read = ReadMergeLog(PosixFiles(), path);
    ASSERT_TRUE(read.ok()) << "killed at call " << call << ": " << read.status();
    EXPECT_GE(int64_t(read->records.size()), synced);
    EXPECT_EQ(read->records, RecordsUpTo(int64_t(read->records.size())));
    // Control: the kill was met. Six calls to open, two for each record.
    EXPECT_EQ(failed, call <= 12) << call;
    const auto again = MergeLog::Open(files, path, kAll);
    EXPECT_TRUE(again.ok()) << again.status();
  }
}

}  // namespace
}  // namespace toroid
