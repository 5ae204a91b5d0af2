// Runs of many steps: what makes another run, what is told of steps, refused when they cannot be
// right. What they write and begin from: training_run_checkpoints_test.cc.
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "parallel/memory_plan.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;

// --- which run it is -----------------------------------------------------------------------------

TEST_F(TrainingRunTest, AnotherRunIsRefusedNotMixed) {
  TrainingPlan plan = Plan({1, 1, 1}, 3);
  ASSERT_TRUE(Run(plan).status.ok());
  const auto refused = [&](const TrainingPlan& other) {
    const Outcome run = Run(other);
    EXPECT_EQ(run.status.code(), absl::StatusCode::kFailedPrecondition) << run.status;
  };
  plan.steps = 6;
  TrainingPlan other = plan;
  other.seed = 6;
  refused(other);
  other = plan;
  other.data.batch_tokens.stages = {{0, 2 * 32}};
  refused(other);
  other = plan;
  other.data.skipped.Skip(0, 32);  // behind us
  refused(other);
  other = plan;
  other.data.paths = {WriteShard(directory_, "others.tokens", Walks(41, vocab()), vocab())};
  refused(other);
  plan.data.skipped.Skip(5 * 128, 6 * 128);  // before us
  plan.data.batch_tokens.stages.push_back({3, 64});
  const Outcome run = Run(plan);
  EXPECT_TRUE(run.status.ok()) << run.status;
  EXPECT_EQ(run.result.steps, 6);
}

TEST_F(TrainingRunTest, OtherDropoutIsAnotherRun) {
  TrainingPlan plan = Plan({1, 1, 1}, 2);
  plan.options.dropout = 0.125;
  plan.options.dropout_seed = 3;
  ASSERT_TRUE(Run(plan).status.ok());
  plan.steps = 4;
  const auto refusal = [&](double rate, uint64_t seed) {
    TrainingPlan other = plan;
    other.options.dropout = rate;
    other.options.dropout_seed = seed;
    const absl::Status status = Run(other).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(0.125, 4), HasSubstr("dropout rate 0.125, seed 3, not rate 0.125, seed 4"));
  EXPECT_THAT(refusal(0.25, 3), HasSubstr("not rate 0.25, seed 3"));
  EXPECT_THAT(refusal(0, 3), HasSubstr("not none"));
  const Outcome same = Run(plan);  // control
  EXPECT_TRUE(same.status.ok()) << same.status;
  EXPECT_EQ(same.reports.size(), 2u);
}

// The moments of one optimizer are nothing that another can use.
TEST_F(TrainingRunTest, AnotherOptimizerIsAnotherRun) {
  TrainingPlan plan = Plan({1, 1, 1}, 2);
  ASSERT_TRUE(Run(plan).status.ok());
  plan.steps = 4;
  TrainingPlan other = plan;
  other.options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
  const absl::Status refused = Run(other).status;
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("has the moments of adamw, not of adafactor"));
  EXPECT_TRUE(Run(plan).status.ok());  // control
}

// Documents of one token have nothing to predict: batches of them alone are steps without a loss,
// which change nothing; data of them alone is refused.
TEST_F(TrainingRunTest, BatchesWithoutLabelsCountAndChangeNothing) {
  Documents documents(2 * 64, Documents::value_type{1});  // two batches of 64 tokens
  for (const auto& walk : Walks(40, vocab())) documents.push_back(walk);
  TrainingPlan plan = Plan({2, 1, 1}, 0);
  plan.data.paths = {WriteShard(directory_, "single.tokens", documents, vocab())};
  plan.data.batch_tokens.stages = {{0, 64}};
  plan.data.shuffle = false;
  plan.options.optimizer.decay.rate = 0.1;
  plan.directory = "";
  const Outcome none = Run(plan);
  ASSERT_TRUE(none.status.ok()) << none.status;
  plan.steps = 2;
  const Outcome empty = Run(plan);
  ASSERT_TRUE(empty.status.ok()) << empty.status;
  EXPECT_EQ(empty.shares, none.shares);
  EXPECT_EQ(empty.result.steps, 2);
  EXPECT_EQ(empty.result.tokens, 2 * 64);
  EXPECT_EQ(empty.result.skipped, 0);
  for (const StepReport& report : empty.reports) {
    EXPECT_EQ(report.result.labels, 0);
    EXPECT_EQ(report.result.loss, 0);
    EXPECT_GT(report.result.rate, 0);
  }
  plan.steps = 5;
  const Outcome whole = Run(plan);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  EXPECT_GT(whole.reports.at(2).result.labels, 0);  // control
  EXPECT_NE(whole.shares, none.shares);
  EXPECT_EQ(whole.result.first_loss, whole.losses.at(2));
  EXPECT_TRUE(std::isfinite(whole.result.last_loss));

  const auto refusal = [&](const TrainingPlan& wrong) {
    const Outcome run = Run(wrong);
    EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument) << run.status;
    EXPECT_TRUE(run.reports.empty());
    return std::string(run.status.message());
  };
  TrainingPlan wrong = plan;
  wrong.data.paths = {WriteShard(directory_, "ones.tokens", Documents(200, {1}), vocab())};
  EXPECT_THAT(refusal(wrong), HasSubstr("nothing to predict"));
  wrong.data.join_documents = true;  // then they predict each other
  EXPECT_TRUE(Run(wrong).status.ok());
}

TEST_F(TrainingRunTest, HashesOfWeightsComeWhenAskedFor) {
  TrainingPlan plan = Plan({2, 1, 1}, 5);
  plan.directory = "";
  plan.param_hash_every = 2;
  const auto hashes = [](const Outcome& run) {
    std::vector<std::optional<uint64_t>> all;
    for (const StepReport& report : run.reports) all.push_back(report.param_hash);
    return all;
  };
  const auto first = hashes(Run(plan));
  ASSERT_EQ(first.size(), 5u);
  EXPECT_FALSE(first[0] || first[2] || first[4]);
  ASSERT_TRUE(first[1] && first[3]);
  EXPECT_NE(*first[1], *first[3]);
  EXPECT_EQ(hashes(Run(plan)), first);
  plan.seed = 6;
  EXPECT_NE(hashes(Run(plan))[1], first[1]);  // control
}

TEST_F(TrainingRunTest, WaitingForOthersIsMeasured) {
  TrainingPlan plan = Plan({2, 1, 2}, 3);
  plan.directory = "";
  double waited = 0;
  for (const StepReport& report : Run(plan).reports) {
    ASSERT_TRUE(report.exposed_seconds.has_value());
    EXPECT_LE(*report.exposed_seconds, report.seconds);
    waited += *report.exposed_seconds;
  }
  EXPECT_GT(waited, 0);
  plan.options.mesh = {1, 1, 1};
  for (const StepReport& report : Run(plan).reports) EXPECT_EQ(report.exposed_seconds, 0.0);
}

TEST_F(TrainingRunTest, WhatDoesNotFitIsRefusedBeforeTheFirstStep) {
  TrainingPlan plan = Plan({2, 1, 1}, 1);
  plan.data.sequence_length = 512;
  plan.data.batch_tokens.stages = {{0, 1024}};
  plan.options.remat = Remat::kNone;
  PlannedTraining job{plan.options, 512, 1024};
  const int64_t need = PlanMemory(source_, job)->most();
  plan.memory_limit = need - 1;
  const Outcome refused = Run(plan);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kFailedPrecondition) << refused.status;
  EXPECT_THAT(std::string(refused.status.message()),
              HasSubstr("fits is --set train.remat=ATTENTION_OUTPUT"));
  EXPECT_TRUE(refused.reports.empty());
  EXPECT_FALSE(std::filesystem::exists(plan.directory));
  plan.memory_limit = need;
  const Outcome fits = Run(plan);
  EXPECT_TRUE(fits.status.ok()) << fits.status;
  EXPECT_NEAR(double(fits.reports.at(0).peak_bytes), double(need), 0.05 * double(need));
}

// It compares a part of a batch with the whole.
TEST_F(TrainingRunTest, TheNoiseScaleOfBatchesOfOneSequenceIsRefused) {
  TrainingPlan plan = Plan({1, 1, 1}, 1);
  plan.options.noise_scale_every = 1;
  plan.data.batch_tokens.stages = {{0, plan.data.sequence_length}};
  const absl::Status refused = Run(plan).status;
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("noise scale"));
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr(absl::StrCat("a batch of ", 2 * plan.data.sequence_length)));
  plan.data.batch_tokens.stages = {{0, 2 * plan.data.sequence_length}};  // negative control
  EXPECT_TRUE(Run(plan).status.ok());
}

// --- memory -------------------------------------------------------------------------------------

TEST_F(TrainingRunTest, MemoryCountsTheCopyOfCheckpoints) {
  TrainingPlan plan = Plan({1, 1, 1}, 1);
  const Outcome with = Run(plan);
  plan.directory = "";
  const Outcome without = Run(plan);
  int64_t copy = 0, constants = 0, optimizer = 0, state = 0;
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    const auto trainer = Trainer::Create(std::move(world), source_, plan.options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    copy = CheckpointCopyBytes((*trainer)->store());
    constants = Optimizer::ConstantBytes((*trainer)->store(), plan.options.optimizer);
    optimizer = (*trainer)->memory().optimizer;
    state = (*trainer)->store().state_bytes();
  });
  EXPECT_GT(copy, 0);
  EXPECT_EQ(with.reports.at(0).peak_bytes - without.reports.at(0).peak_bytes, copy);
  EXPECT_GT(constants, 0);
  EXPECT_EQ(optimizer, 2 * state + constants);
}

// --- what cannot be right -----------------------------------------------------------------------

TEST_F(TrainingRunTest, DataOfAnotherVocabularyIsRefused) {
  TrainingPlan plan = Plan({1, 1, 1}, 3);
  plan.data.paths = {WriteShard(directory_, "large.tokens", {{1, 2, 3}}, 65536)};
  EXPECT_THAT(Run(plan).status.message(), HasSubstr("vocabulary of 65536"));
  plan.data.paths = {directory_.path() + "/none*.tokens"};
  EXPECT_THAT(Run(plan).status.message(), HasSubstr("none"));
}

TEST_F(TrainingRunTest, WhatDoesNotFitIsOneErrorBeforeTheFirstStep) {
  const auto refused = [&](const TrainingPlan& plan, const std::string& words, int ranks = 0) {
    const Outcome run = Run(plan, {}, {}, ranks);
    EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(run.status.message(), HasSubstr(words));
    EXPECT_TRUE(run.reports.empty());
  };
  TrainingPlan plan = Plan({2, 1, 1}, 3);
  refused(plan, "data=1,ring=3,tensor=1", 3);
  refused(Plan({1, 1, 10}, 3), "9");  // query heads
  plan.data.batch_tokens.stages = {{0, 100}};
  refused(plan, "100");
  plan = Plan({2, 1, 1}, 3);
  plan.data.sequence_length = 0;
  refused(plan, "sequence length");
  plan = Plan({2, 1, 1}, 300);
  plan.data.epochs = 1;
  refused(plan, "the data ends after");
  plan = Plan({2, 1, 1}, 3);
  plan.options.dropout = 1;
  refused(plan, "dropout");
  plan = Plan({2, 1, 1}, 3);
  plan.options.optimizer.rate.peak = 0;
  refused(plan, "learning rate");
  plan = Plan({2, 1, 1}, 3);
  plan.checkpoint_every = 50;
  plan.keep = 2;
  plan.spike = SpikeRule();
  refused(plan, "keep 3");
  plan.directory = "";
  refused(plan, "checkpoints");
}

// Batches that no axis divides, and packs of one token each: right.
TEST_F(TrainingRunTest, BatchesThatDoNotDivide) {
  for (const int64_t length : {1, 31}) {
    TrainingPlan plan = Plan({1, 1, 1}, 4);
    plan.directory = "";
    plan.data.sequence_length = length;
    plan.data.batch_tokens.stages = {{0, 5 * length}, {2, 3 * length}};
    const Outcome one = Run(plan);
    ASSERT_TRUE(one.status.ok()) << one.status;
    for (const MeshShape mesh :
         {MeshShape{3, 1, 1}, MeshShape{2, 2, 1}, MeshShape{1, 3, 2}, MeshShape{2, 1, 3}}) {
      plan.options.mesh = mesh;
      plan.options.packs_per_rank = mesh.tensor;
      const Outcome many = Run(plan);
      ASSERT_TRUE(many.status.ok()) << many.status;
      for (int64_t step = 0; step < 4; ++step) {
        EXPECT_NEAR(many.losses.at(step) / one.losses.at(step), 1, 1e-5)
            << ToString(mesh) << " length " << length << " step " << step;
      }
    }
  }
}

// Text is tokenised by all ranks together; without any there is one error.
TEST_F(TrainingRunTest, TextAndNoText) {
  TrainingPlan plan = Plan({2, 1, 1}, 3);
  plan.directory = "";
  plan.data.paths = {directory_.Write("empty.txt", "")};
  EXPECT_THAT(Run(plan).status.message(), HasSubstr("has no tokenizer"));
  auto tokenizer = Tokenizer::FromSource(source_->tokenizer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  tokenizer_ = std::move(*tokenizer);
  const Outcome empty = Run(plan);
  EXPECT_FALSE(empty.status.ok());
  EXPECT_TRUE(empty.reports.empty());
  EXPECT_NE(empty.status.message(), "");

  std::string text;
  for (int i = 0; i < 100; ++i) text += "All that is gold does not glitter. ";
  plan.data.paths = {directory_.Write("some.txt", text)};
  int64_t told = 0;
  TrainingEvents events;
  events.on_tokenised = [&](const TokenCacheProgress&) { ++told; };
  const Outcome some = Run(plan, events);
  ASSERT_TRUE(some.status.ok()) << some.status;
  EXPECT_EQ(some.result.steps, 3);
  EXPECT_GT(told, 0);
  EXPECT_GT(some.reports[0].flops.model, 0);
  EXPECT_GT(some.reports[0].flops.hardware, some.reports[0].flops.model);
}

}  // namespace
}  // namespace toroid
