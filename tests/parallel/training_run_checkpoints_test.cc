// The checkpoints of a run: which one it begins from, which are written and kept, what stops or
// ends it meanwhile. That it goes on with the same bits: training_resume_test.cc.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "core/io/convert.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;
using TrainingRunCheckpointsTest = TrainingRunTest;

// A run that has used all of its data is done, however often it is started, and goes on once it may
// read more.
TEST_F(TrainingRunCheckpointsTest, GoesOnBehindTheEndOfItsData) {
  TrainingPlan plan = Plan({1, 1, 1}, 300);
  plan.data.epochs = 1;
  int64_t tokens = 0;
  for (const std::vector<int32_t>& document : Walks(40, vocab()))
    tokens += int64_t(document.size());
  ASSERT_NE(tokens % 128, 0);
  plan.steps = tokens / 128 + 1;  // the last batch is ragged
  ASSERT_TRUE(Run(plan).status.ok());
  const Outcome again = Run(plan);
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_TRUE(again.reports.empty());
  TrainingPlan more = plan;
  more.data.epochs = 2;
  more.steps += 2;
  const Outcome rest = Run(more);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_EQ(rest.reports.size(), 2u);
  more.data.batch_tokens.stages = {{0, 2 * 32}};  // control: still another run
  EXPECT_EQ(Run(more).status.code(), absl::StatusCode::kFailedPrecondition);
}

// The newest checkpoint is damaged: the one before is taken, and what follows is a new branch.
TEST_F(TrainingRunCheckpointsTest, ADamagedCheckpointCostsItsStepsAlone) {
  TrainingPlan plan = Plan({1, 1, 1}, 10);
  plan.checkpoint_every = 5;
  const Outcome whole = Run(plan);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  const std::string newest = whole.result.checkpoint;
  for (const auto& file : std::filesystem::directory_iterator(newest)) {
    if (file.path().extension() == ".bin") {
      std::filesystem::resize_file(file.path(), std::filesystem::file_size(file.path()) - 1);
    }
  }
  const Outcome again = Run(plan);
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.reports.size(), 5u);
  EXPECT_EQ(again.shares, whole.shares);
  EXPECT_TRUE(again.Notes(newest));
  EXPECT_THAT(again.result.checkpoint, HasSubstr("step-00000010-b1"));
  EXPECT_TRUE(Run(plan).reports.empty());
}

TEST_F(TrainingRunCheckpointsTest, StopsBehindAStepWithACheckpoint) {
  TrainingEvents events;
  int64_t done = 0;
  events.on_step = [&](const StepReport&) { ++done; };
  events.stop = [&] { return done == 7 ? StopAsked::kRequeue : StopAsked::kNo; };
  const Outcome asked = Run(Plan({2, 1, 1}, 20), events);
  ASSERT_TRUE(asked.status.ok()) << asked.status;
  EXPECT_EQ(asked.result.stopped, StopAsked::kRequeue);
  EXPECT_EQ(asked.result.steps, 7);
  EXPECT_THAT(asked.result.checkpoint, HasSubstr("step-00000007"));
  done = 0;
  events.stop = [&] { return done == 2 ? StopAsked::kEnd : StopAsked::kNo; };
  const Outcome ended = Run(Plan({2, 1, 1}, 20), events);
  ASSERT_TRUE(ended.status.ok()) << ended.status;
  EXPECT_EQ(ended.result.stopped, StopAsked::kEnd);
  EXPECT_THAT(ended.result.checkpoint, HasSubstr("step-00000009"));
}

// Cancelled, a run begins no checkpoint, but the one that is being written becomes one.
TEST_F(TrainingRunCheckpointsTest, CancelledKeepsWhatIsBeingWritten) {
  TrainingPlan plan = Plan({2, 1, 1}, 20);
  plan.checkpoint_every = 5;
  const auto kept = [&](int64_t steps) {
    plan.directory = Directory(std::to_string(steps));
    TrainingEvents events;
    int64_t done = 0;
    events.on_step = [&](const StepReport&) { ++done; };
    events.stop = [&] { return done == steps ? StopAsked::kCancel : StopAsked::kNo; };
    EXPECT_EQ(Run(plan, events).status.code(), absl::StatusCode::kCancelled);
    std::vector<std::string> names;
    for (const CheckpointEntry& entry :
         Loadable(*ListCheckpoints(PosixFiles(), plan.directory + "/checkpoints"))) {
      names.push_back(entry.name);
    }
    return names;
  };
  EXPECT_THAT(kept(5), testing::ElementsAre("step-00000005"));
  EXPECT_THAT(kept(4), testing::IsEmpty());  // control
}

// A disk that takes no checkpoint is an alarm, and the run goes on; but without its last one it has
// failed.
TEST_F(TrainingRunCheckpointsTest, ACheckpointThatCannotBeWrittenStopsNothing) {
  TrainingPlan plan = Plan({2, 1, 1}, 6);
  plan.checkpoint_every = 2;
  TrainingEvents events;
  events.on_step = [&](const StepReport& report) {
    if (report.result.step > 0) return;
    std::filesystem::create_directories(plan.directory);
    directory_.Write("run/checkpoints", "in the way");
  };
  const Outcome run = Run(plan, events);
  EXPECT_EQ(run.reports.size(), 6u);
  EXPECT_TRUE(run.Notes("no checkpoint of step 2"));
  EXPECT_TRUE(run.Notes("no checkpoint of step 6"));
  EXPECT_EQ(run.alarms.size(), 4u);  // the last is tried twice
  EXPECT_EQ(run.status.code(), absl::StatusCode::kAborted) << run.status;
  EXPECT_THAT(run.status.message(), HasSubstr("the checkpoint of step 6"));
  EXPECT_THAT(run.status.message(), HasSubstr("nothing is kept in " + plan.directory));
  EXPECT_THAT(run.status.message(), HasSubstr("free space there, then start the same command"));
}

// The last checkpoint finds the disk as it was, or with room again.
TEST_F(TrainingRunCheckpointsTest, TheLastCheckpointIsTriedTwice) {
  TrainingPlan plan = Plan({2, 1, 1}, 6);
  plan.checkpoint_every = 4;
  const std::string checkpoints = plan.directory + "/checkpoints";
  for (const bool mended : {true, false}) {
    std::filesystem::remove_all(plan.directory);
    TrainingEvents events;
    // Each of the checkpoints gets a step of its own to be written in.
    events.on_checkpoint = [&](const CheckpointOutcome& outcome) {
      if (!outcome.status.ok()) return;
      std::filesystem::rename(checkpoints, checkpoints + ".away");
      directory_.Write("run/checkpoints", "in the way");
    };
    events.on_alarm = [&](const std::string&) {
      if (!mended || std::filesystem::is_directory(checkpoints)) return;
      std::filesystem::remove(checkpoints);
      std::filesystem::rename(checkpoints + ".away", checkpoints);
    };
    const Outcome run = Run(plan, events);
    EXPECT_EQ(run.reports.size(), 6u);
    EXPECT_EQ(run.status.ok(), mended) << run.status;
    if (mended) {
      EXPECT_THAT(run.result.checkpoint, HasSubstr("step-00000006"));
    } else {
      EXPECT_THAT(run.status.message(),
                  HasSubstr("no further than " + checkpoints + "/step-00000004"));
    }
  }
}

// The newest may turn out to be damaged: one is never all there is.
TEST_F(TrainingRunCheckpointsTest, TwoCheckpointsAreKeptAtLeast) {
  TrainingPlan plan = Plan({1, 1, 1}, 6);
  plan.checkpoint_every = 2;
  for (const int64_t keep : {1, 2, 3}) {
    plan.keep = keep;
    plan.directory = Directory(std::to_string(keep));
    ASSERT_TRUE(Run(plan).status.ok());
    const auto entries = ListCheckpoints(PosixFiles(), plan.directory + "/checkpoints");
    EXPECT_EQ(int64_t(entries->size()), std::max<int64_t>(2, keep));
  }
}

// The second run, begun while the first is at it, names who has the directory and changes nothing.
TEST_F(TrainingRunCheckpointsTest, ADirectoryIsOfOneRunAtATime) {
  TrainingPlan plan = Plan({2, 1, 1}, 4);
  absl::Status second;
  TrainingEvents events;
  events.on_step = [&](const StepReport& report) {
    if (report.result.step == 1) second = Run(plan).status;
  };
  const Outcome first = Run(plan, events);
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition) << second;
  EXPECT_THAT(second.message(), HasSubstr(plan.directory + ": another run uses this directory"));
  EXPECT_THAT(second.message(), HasSubstr(absl::StrCat("pid ", getpid())));
  EXPECT_TRUE(Run(plan).status.ok());  // control: it is free again
}

// A model converted into the run's directory is what the run begins from.
TEST_F(TrainingRunCheckpointsTest, BeginsFromAConvertedModel) {
  TrainingPlan plan = Plan({2, 1, 1}, 3);
  const Outcome anew = Run(plan);
  ASSERT_TRUE(anew.status.ok()) << anew.status;
  plan.directory = Directory("converted");
  std::filesystem::create_directories(plan.directory + "/checkpoints");
  const std::string path = plan.directory + "/checkpoints/step-00000000";
  const auto converted = WriteCheckpoint(*source_, path, {});
  ASSERT_TRUE(converted.ok()) << converted.status();
  plan.data.skipped.Skip(0, 128);  // from where it begins, too
  const Outcome from = Run(plan);
  ASSERT_TRUE(from.status.ok()) << from.status;
  EXPECT_TRUE(from.Notes("resumed from " + path));
  EXPECT_EQ(from.reports.size(), 3u);
  plan.data.skipped = {};
  plan.directory = Directory("not skipped");
  std::filesystem::create_directories(plan.directory + "/checkpoints");
  ASSERT_TRUE(WriteCheckpoint(*source_, plan.directory + "/checkpoints/step-00000000", {}).ok());
  const Outcome same = Run(plan);
  ASSERT_TRUE(same.status.ok()) << same.status;
  EXPECT_EQ(same.shares, anew.shares);
  EXPECT_NE(from.shares, anew.shares);  // control
}

}  // namespace
}  // namespace toroid
