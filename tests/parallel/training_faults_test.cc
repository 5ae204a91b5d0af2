// What goes wrong within a run: a loss that jumps takes it back, gradients that are not finite skip
// steps.
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "core/io/convert.h"
#include "tests/support/passing_communicator.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;

// --- spikes -------------------------------------------------------------------------------------

class SpikeTest : public TrainingRunTest {
 protected:
  // Documents of a pack each, in order: batch s is documents 4 s to 4 s + 3. Those of the steps of
  // `poisoned` are of other tokens.
  TrainingPlan SpikePlan(const std::string& name, const std::set<int64_t>& poisoned) const {
    Documents documents;
    for (int64_t d = 0; d < 240; ++d) {
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < 32; ++i) {
        const auto random = Philox(3, uint64_t(i), uint64_t(d));
        ids.push_back(int32_t(poisoned.count(d / 4) ? 200 + random[0] % 100 : random[0] % 16));
      }
      documents.push_back(std::move(ids));
    }
    TrainingPlan plan = Plan({2, 1, 1}, 36);
    plan.data.paths = {WriteShard(directory_, name + ".tokens", documents, vocab())};
    plan.data.shuffle = false;
    plan.directory = Directory(name);
    plan.checkpoint_every = 5;
    plan.keep = 8;
    plan.spike = SpikeRule{.window = 10,
                           .least_losses = 5,
                           .deviations = 4,
                           .least_rise = 1,
                           .rewind_steps = 3,
                           .skip_steps = 4,
                           .max_rewinds = 3};
    return plan;
  }
};

// So that a batch of other tokens is a spike after a few steps.
void LearnFast(TrainingPlan& plan) {
  plan.options.optimizer.rate.peak = 3e-2;
  plan.options.optimizer.rate.warmup = 1;
  plan.spike->deviations = 1;
}

// A jump of the loss takes the run back to a checkpoint, past the batches around it; the run is
// then the one that was started with that skip list.
TEST_F(SpikeTest, IsSkippedAndLogged) {
  TrainingPlan plan = SpikePlan("spiked", {22});
  const Outcome spiked = Run(plan);
  ASSERT_TRUE(spiked.status.ok()) << spiked.status;
  EXPECT_EQ(spiked.result.rewinds, 1);
  EXPECT_EQ(spiked.result.steps, 36);
  EXPECT_EQ(spiked.reports.size(), 36u + 8);  // 15 to 22 twice
  // Step 22, hence the last checkpoint at least 3 steps before, and all batches up to it.
  EXPECT_TRUE(spiked.Notes("step 23: loss"));
  EXPECT_TRUE(spiked.Notes("back to step 15, without the batches of steps 16 to 23"));

  TrainingPlan told = plan;
  told.directory = Directory("told");
  told.data.skipped.Skip(15 * 128, 23 * 128);
  const Outcome skipped = Run(told);
  ASSERT_TRUE(skipped.status.ok()) << skipped.status;
  EXPECT_EQ(skipped.result.rewinds, 0);
  EXPECT_EQ(skipped.losses, spiked.losses);
  EXPECT_EQ(skipped.shares, spiked.shares);

  // Control: without the rule the batch is met, and the run is another one.
  TrainingPlan met = plan;
  met.directory = "";
  met.spike.reset();
  const Outcome through = Run(met);
  EXPECT_GT(through.losses.at(22), through.losses.at(21) + 1);
  EXPECT_NE(through.shares, spiked.shares);
}

// Killed right behind the rewind, the run does not meet the window again.
TEST_F(SpikeTest, IsRememberedByTheNextLaunch) {
  TrainingPlan plan = SpikePlan("spiked", {22});
  const Outcome whole = Run(plan);
  plan.directory = Directory("killed");
  TrainingEvents events;
  int64_t done = 0;
  events.on_step = [&](const StepReport&) { ++done; };
  events.stop = [&] { return done == 24 ? StopAsked::kCancel : StopAsked::kNo; };
  EXPECT_EQ(Run(plan, events).status.code(), absl::StatusCode::kCancelled);
  const Outcome rest = Run(plan);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_EQ(rest.reports.front().result.step, 15);
  EXPECT_EQ(rest.result.rewinds, 1);
  EXPECT_EQ(rest.shares, whole.shares);
}

// The second spike comes before the new branch has a checkpoint that is old enough: the run goes
// back to one of the branch before. A third one is more than the rule allows.
TEST_F(SpikeTest, GoesBackFurtherAndThenGivesUp) {
  TrainingPlan plan = SpikePlan("twice", {22, 24});
  const Outcome spiked = Run(plan);
  ASSERT_TRUE(spiked.status.ok()) << spiked.status;
  EXPECT_EQ(spiked.result.rewinds, 2);
  EXPECT_TRUE(spiked.Notes("back to step 15, without the batches of steps 16 to 23"));
  EXPECT_TRUE(spiked.Notes("back to step 10, without the batches of steps 11 to 17"));
  TrainingPlan told = plan;
  told.directory = Directory("told");
  told.data.skipped.Skip(10 * 128, 25 * 128);
  const Outcome skipped = Run(told);
  EXPECT_EQ(skipped.losses, spiked.losses);
  EXPECT_EQ(skipped.shares, spiked.shares);

  plan.directory = Directory("given up");
  plan.spike->max_rewinds = 1;
  const Outcome given_up = Run(plan);
  EXPECT_EQ(given_up.status.code(), absl::StatusCode::kResourceExhausted) << given_up.status;
}

// Before the run is as old as the rule reaches back, its beginning will do.
TEST_F(SpikeTest, MayComeEarly) {
  TrainingPlan plan = SpikePlan("early", {6});
  LearnFast(plan);
  plan.spike->rewind_steps = 20;
  const Outcome spiked = Run(plan);
  ASSERT_TRUE(spiked.status.ok()) << spiked.status;
  EXPECT_EQ(spiked.result.rewinds, 1);
  EXPECT_TRUE(spiked.Notes("step 7: loss"));
  EXPECT_TRUE(spiked.Notes("back to step 0, without the batches of steps 1 to 7"));
  EXPECT_FALSE(spiked.Notes("oldest checkpoint"));
}

// The same from a model that was converted into the run's directory.
TEST_F(SpikeTest, MayComeEarlyAfterAConvertedModel) {
  TrainingPlan plan = SpikePlan("early", {6});
  LearnFast(plan);
  const Outcome anew = Run(plan);
  plan.directory = Directory("converted");
  std::filesystem::create_directories(plan.directory + "/checkpoints");
  ASSERT_TRUE(WriteCheckpoint(*source_, plan.directory + "/checkpoints/step-00000000", {}).ok());
  const Outcome converted = Run(plan);
  ASSERT_TRUE(converted.status.ok()) << converted.status;
  EXPECT_EQ(converted.result.rewinds, 1);
  EXPECT_EQ(converted.losses, anew.losses);
  EXPECT_EQ(converted.shares, anew.shares);
}

// A checkpoint out of turn, of a run that was told to stop, takes the place of an older one.
TEST_F(SpikeTest, GoesToTheOldestCheckpointThatIsLeft) {
  TrainingPlan plan = SpikePlan("asked", {13});
  LearnFast(plan);
  plan.checkpoint_every = 10;
  plan.keep = 2;
  plan.spike->rewind_steps = 10;
  TrainingEvents events;
  int64_t done = 0;
  events.on_step = [&](const StepReport&) { ++done; };
  events.stop = [&] { return done == 12 ? StopAsked::kRequeue : StopAsked::kNo; };
  ASSERT_TRUE(Run(plan, events).status.ok());
  const Outcome rest = Run(plan);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_TRUE(rest.Notes("back to step 10, without the batches of steps 11 to 14"));
  EXPECT_TRUE(rest.Notes("step 10 is the oldest checkpoint, 7 steps younger"));
  EXPECT_EQ(rest.result.steps, 36);

  plan.directory = Directory("not asked");  // control
  const Outcome whole = Run(plan);
  EXPECT_TRUE(whole.Notes("back to step 0"));
  EXPECT_FALSE(whole.Notes("oldest checkpoint"));
}

// What is left out of data that ends is missing at its end.
TEST_F(SpikeTest, EndsAtTheEndOfItsData) {
  TrainingPlan plan = SpikePlan("finite", {22});
  plan.data.epochs = 1;
  plan.steps = 60;  // all of it
  const Outcome spiked = Run(plan);
  ASSERT_TRUE(spiked.status.ok()) << spiked.status;
  EXPECT_EQ(spiked.result.steps, 52);
  EXPECT_TRUE(spiked.Notes("the data ends after 52 of 60 steps"));
  EXPECT_THAT(spiked.result.checkpoint, HasSubstr("step-00000052"));
  const Outcome again = Run(plan);
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_TRUE(again.reports.empty());
  plan.directory = Directory("too long");  // control: without a spike it is the plan that is wrong
  plan.steps = 61;
  EXPECT_EQ(Run(plan).status.code(), absl::StatusCode::kInvalidArgument);
}

// --- gradients that are not finite --------------------------------------------------------------

// Plants NaN into the first element that rank 0 receives in reductions of a given number, counted
// over all axes.
class PlantingCommunicator final : public PassingCommunicator {
 public:
  PlantingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<int64_t> reductions,
                       std::set<int64_t> planted)
      : PassingCommunicator(std::move(inner)), reductions_(reductions), planted_(planted) {}

  using Communicator::Split;
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return std::make_unique<PlantingCommunicator>(inner().Split(color, key), reductions_, planted_);
  }

 protected:
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    PassingCommunicator::DoReduceScatter(s, x, out, count_each, type);
    if (planted_.count((*reductions_)++) == 0) return;
    s.cpu->Enqueue([out] {
      *static_cast<float*>(out) = std::numeric_limits<float>::quiet_NaN();
      return true;
    });
  }

 private:
  const std::shared_ptr<int64_t> reductions_;
  const std::set<int64_t> planted_;
};

class NanTest : public TrainingRunTest {
 protected:
  // A step's two micro-batches reduce four groups each: the head's, layer 1's, layer 0's and the
  // embedding's. NaN comes with layer 1's.
  static WrapWorld PlantIn(std::set<int64_t> steps) {
    std::set<int64_t> reductions;
    for (const int64_t step : steps) reductions.insert(8 * step + 1);
    return [=](std::unique_ptr<Communicator> world) -> std::unique_ptr<Communicator> {
      if (world->rank() != 0) return world;
      return std::make_unique<PlantingCommunicator>(std::move(world), std::make_shared<int64_t>(0),
                                                    reductions);
    };
  }
  const std::string name_ = "model.layers.1.input_layernorm.weight";
};

TEST_F(NanTest, SkipsThatStepCountsItAndNamesTheParameter) {
  TrainingPlan plan = Plan({2, 1, 1}, 8);
  plan.directory = "";
  const Outcome clean = Run(plan, {}, PlantIn({}));
  ASSERT_TRUE(clean.status.ok()) << clean.status;
  EXPECT_EQ(clean.result.skipped, 0);
  const Outcome planted = Run(plan, {}, PlantIn({5}));
  ASSERT_TRUE(planted.status.ok()) << planted.status;
  EXPECT_EQ(planted.result.skipped, 1);
  for (const StepReport& report : planted.reports) {
    EXPECT_EQ(report.result.skipped, report.result.step == 5 ? name_ : "");
  }
  for (int64_t step = 0; step <= 5; ++step) {
    EXPECT_EQ(planted.losses.at(step), clean.losses.at(step));
  }
  EXPECT_NE(planted.losses.at(6), clean.losses.at(6));  // step 5 was not made
  for (const auto& [rank, share] : planted.shares) {
    for (const float w : share) ASSERT_TRUE(std::isfinite(w)) << "rank " << rank;
  }
}

TEST_F(NanTest, FailsAfterTooManyInARowAndCountsOverLaunches) {
  TrainingPlan plan = Plan({2, 1, 1}, 20);
  plan.skip_limit = 2;
  plan.checkpoint_every = 2;
  EXPECT_TRUE(Run(plan, {}, PlantIn({3, 4, 6, 7})).status.ok());
  plan.directory = Directory("failed");
  const Outcome failed = Run(plan, {}, PlantIn({2, 6, 7, 8}));
  EXPECT_EQ(failed.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(failed.status.message(), HasSubstr("step 9"));
  EXPECT_THAT(failed.status.message(), HasSubstr(name_));
  EXPECT_EQ(failed.reports.back().result.step, 8);
  const Outcome rest = Run(plan);  // from a checkpoint; what made it fail is gone
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_GE(rest.result.skipped, 1);
}

}  // namespace
}  // namespace toroid
