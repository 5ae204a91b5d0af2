// Runs that go on where they stopped: bit for bit on the same mesh, after a stop and after being
// killed, and within rounding on another.
#include <atomic>
#include <bit>
#include <cmath>
#include <filesystem>

#include "core/io/model_checkpoint.h"
#include "core/version.h"
#include "parallel/checkpoint_lost.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;

class TrainingResumeTest : public TrainingRunTest {
 protected:
  // The plan at once, and stopped at `stop`, between two checkpoints, and begun again: every rank
  // ends with the same bits of weights and moments. Gives the whole run.
  Outcome ExpectResumes(TrainingPlan plan, int64_t stop) const {
    const int64_t steps = plan.steps;
    const std::string name = Directory(ToString(plan.options.mesh));
    plan.directory = name + " whole";
    const Outcome whole = Run(plan);
    EXPECT_TRUE(whole.status.ok()) << whole.status;
    EXPECT_EQ(int64_t(whole.shares.size()), plan.options.mesh.size());
    plan.directory = name + " parts";
    plan.checkpoint_every = 5;
    plan.steps = stop;
    const Outcome part = Run(plan);
    EXPECT_TRUE(part.status.ok()) << part.status;
    EXPECT_NE(part.shares, whole.shares);  // control
    plan.steps = steps;
    const Outcome rest = Run(plan);
    EXPECT_TRUE(rest.status.ok()) << rest.status;
    EXPECT_TRUE(rest.Notes("resumed from"));
    EXPECT_EQ(int64_t(rest.losses.size()), steps - stop);
    for (const auto& [step, loss] : rest.losses) EXPECT_EQ(loss, whole.losses.at(step)) << step;
    EXPECT_EQ(rest.shares, whole.shares);
    return whole;
  }
};

TEST_F(TrainingResumeTest, LearnsAndResumesBitForBit) {
  const Outcome whole = ExpectResumes(Plan({2, 1, 1}, 30), 17);
  EXPECT_LT(whole.losses.at(29), whole.losses.at(0) - 0.3);
  EXPECT_THAT(whole.result.checkpoint, HasSubstr("step-00000030"));
}

TEST_F(TrainingResumeTest, ResumesBitForBitOnRingAndTensor) {
  for (const MeshShape mesh : {MeshShape{1, 3, 1}, MeshShape{1, 1, 2}}) {
    SCOPED_TRACE(ToString(mesh));
    TrainingPlan plan = Plan(mesh, 11);
    plan.options.dropout = 0.1;
    ExpectResumes(plan, 7);
  }
}

// How fast its second moments forget is a function of the number of updates that were made.
TEST_F(TrainingResumeTest, AdafactorResumesBitForBit) {
  for (const MeshShape mesh : {MeshShape{1, 3, 1}, MeshShape{1, 1, 2}}) {
    SCOPED_TRACE(ToString(mesh));
    TrainingPlan plan = Plan(mesh, 14);
    plan.options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
    plan.options.optimizer.rate.peak = 2e-2;
    plan.options.optimizer.decay = {WeightDecay::Kind::kRateSquared, 0};
    const Outcome whole = ExpectResumes(plan, 8);
    EXPECT_LT(whole.losses.at(13), whole.losses.at(0) - 0.1);
  }
}

// Weights and moments of all ranks of a mesh, float32, and what more than one of them holds.
struct Replicas {
  std::map<std::pair<int, std::string>, std::vector<float>> seen;  // NaN: not yet
  int64_t kv = 0, others = 0;  // elements seen again: of KV heads, of what every rank holds
  int64_t differing = 0;       // in a bit

  void Add(const ParamStore& store) {
    using Kind = ParamStore::Kind;
    for (const Kind kind : {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments}) {
      for (int64_t g = 0; g < store.groups().count(); ++g) {
        for (const ParamPiece& piece : store.pieces(g)) {
          Add(kind, store.groups().group(g).members[size_t(piece.member)], piece.begin,
              store.Stored(kind, g, piece));
        }
      }
    }
  }
  void Add(ParamStore::Kind kind, const GroupMember& member, int64_t begin, const Tensor& stored) {
    const ParamSlice& slice = member.slice;
    std::vector<float>& whole = seen[{int(kind), member.spec.name}];
    whole.resize(size_t(member.spec.rows * member.spec.cols), NAN);
    for (int64_t i = 0; i < stored.size(); ++i) {
      const int64_t e = begin + i, row = slice.row_begin + e / slice.col_count;
      float& other = whole[size_t(row * member.spec.cols + slice.col_begin + e % slice.col_count)];
      const float own = stored.as<float>()[i];
      if (!std::isnan(other)) {
        (member.spec.split == Split::kKvHeads ? kv : others) += 1;
        differing += std::bit_cast<uint32_t>(own) != std::bit_cast<uint32_t>(other);
      }
      other = own;
    }
  }
};

// The lowest holder of a KV head writes it to checkpoints, the others read what it wrote: behind a
// resumed run, as before it, all have the same bits. So with what is replicated.
TEST_F(TrainingResumeTest, HoldersOfASharedHeadHoldTheSameBits) {
  const ModelConfig& config = source_->config;
  for (const MeshShape mesh : {MeshShape{1, 1, 2}, MeshShape{1, 3, 2}}) {
    SCOPED_TRACE(ToString(mesh));
    TrainingPlan plan = Plan(mesh, 0);
    plan.directory = Directory(ToString(mesh));
    for (const int64_t steps : {3, 6}) {
      Replicas replicas;
      at_end_ = [&](Trainer& trainer) { replicas.Add(trainer.store()); };
      plan.steps = steps;
      const Outcome run = Run(plan);
      ASSERT_TRUE(run.status.ok()) << run.status;
      EXPECT_EQ(run.reports.size(), 3u);
      EXPECT_EQ(replicas.differing, 0);
      // Both ranks of tensor read the middle one of three KV heads; weights and two moments.
      EXPECT_EQ(replicas.kv, 3 * config.layers * 2 * config.head_dim * config.dim);
      EXPECT_EQ(replicas.others, 3 * (2 * config.layers + 1) * config.dim);  // gains
    }
  }
  // Control: one bit of a moment of one holder.
  Replicas replicas;
  at_end_ = [&](Trainer& trainer) {
    const ParamStore& store = trainer.store();
    float* gain =
        store.Stored(ParamStore::Kind::kSecondMoments, store.groups().layer(0)).as<float>();
    if (trainer.mesh().rank() == 1) gain[3] = std::nextafter(gain[3], 1.0f);
    replicas.Add(store);
  };
  TrainingPlan plan = Plan({1, 1, 2}, 1);
  plan.directory = "";
  ASSERT_TRUE(Run(plan).status.ok());
  EXPECT_EQ(replicas.differing, 1);
}

// 200 steps with dropout and a measured noise scale: at once, stopped at 150 and begun again,
// killed behind steps drawn at random.
TEST_F(TrainingResumeTest, OneCurveOf200StepsHoweverOftenTheyAreKilled) {
  TrainingPlan plan = Plan({2, 1, 1}, 200);
  plan.data.sequence_length = 12;
  plan.data.batch_tokens.stages = {{0, 2 * 12}, {60, 3 * 12}};
  plan.checkpoint_every = 13;
  plan.options.dropout = 0.1;
  plan.options.dropout_seed = 3;
  plan.options.noise_scale_every = 5;
  const auto noise = [](const Outcome& run) {
    return std::vector<double>{run.noise.gradient, run.noise.trace, run.noise.weight};
  };
  plan.directory = Directory("whole");
  const Outcome whole = Run(plan);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  EXPECT_GT(whole.noise.weight, 20);  // 40 measurements, the older ones forgotten a little

  plan.directory = Directory("stopped");
  plan.steps = 150;
  ASSERT_TRUE(Run(plan).status.ok());
  plan.steps = 200;
  const Outcome stopped = Run(plan);
  ASSERT_TRUE(stopped.status.ok()) << stopped.status;
  EXPECT_EQ(stopped.reports.size(), 50u);
  EXPECT_EQ(stopped.shares, whole.shares);
  EXPECT_EQ(noise(stopped), noise(whole));

  plan.directory = Directory("killed");
  std::map<int64_t, double> losses;
  int64_t kill = 0, lost = 0;
  for (int64_t launch = 0; kill < 200; ++launch) {
    plan.epoch = launch;
    kill += 20 + int64_t(Philox(17, uint64_t(launch), 0)[0] % 40);
    const Outcome killed = kill < 200 ? RunUntilKilled(plan, kill) : Run(plan);
    ASSERT_EQ(killed.status.ok(), kill >= 200) << killed.status;
    for (const StepReport& report : killed.reports) {
      lost += losses.count(report.result.step) > 0;
      losses[report.result.step] = report.result.loss;
    }
    if (kill < 200) continue;
    EXPECT_EQ(killed.shares, whole.shares);
    EXPECT_EQ(noise(killed), noise(whole));
  }
  EXPECT_GT(lost, 0);  // steps were done twice
  EXPECT_EQ(losses, whole.losses);

  // Control: what a run is shows in these numbers.
  plan.directory = "";
  plan.steps = 9;
  plan.options.dropout_seed = 4;
  EXPECT_NE(Run(plan).losses.at(8), whole.losses.at(8));
}

// What the job has committed, and a host that has not got it.
TEST_F(TrainingResumeTest, ARunDoesNotBeginWithoutWhatWasCommitted) {
  TrainingPlan plan = Plan({2, 1, 1}, 4);
  plan.committed_step = 6;
  const auto refusal = [&] {
    const Outcome refused = Run(plan);
    EXPECT_EQ(refused.status.code(), absl::StatusCode::kFailedPrecondition) << refused.status;
    EXPECT_TRUE(refused.reports.empty());
    EXPECT_TRUE(IsCheckpointLost(refused.status));
    EXPECT_THAT(std::string(refused.status.message()),
                HasSubstr("checkpoint lost: the job has committed one of step 6"));
    return std::string(refused.status.message());
  };
  EXPECT_THAT(refusal(), HasSubstr("/run/checkpoints has none: copy it there"));
  plan.committed_step = 0;  // control: nobody knows of any
  ASSERT_TRUE(Run(plan).status.ok());
  plan.committed_step = 6;
  plan.steps = 8;
  EXPECT_THAT(refusal(), HasSubstr("/run/checkpoints ends with step-00000004: copy"));
  plan.committed_branch = kMostBranches;  // of another pod's directory
  refusal();
  plan.committed_branch = 0;
  plan.committed_step = 4;
  EXPECT_EQ(Run(plan).reports.size(), 4u);
  // A damaged one is there: the run goes back as it always does, and says so.
  plan.committed_step = 8;
  std::filesystem::resize_file(Directory("run/checkpoints/step-00000008/manifest.json"), 9);
  const Outcome again = Run(plan);
  EXPECT_TRUE(again.Notes("step-00000008")) << again.status;
  EXPECT_EQ(again.reports.size(), 4u);
  EXPECT_THAT(again.result.checkpoint, HasSubstr("step-00000008-b1"));
  // A later branch is newer, whatever its steps.
  plan.committed_step = 9;
  plan.steps = 10;
  EXPECT_EQ(Run(plan).reports.size(), 2u);
}

TEST_F(TrainingResumeTest, ResumesOnAnotherMesh) {
  TrainingPlan plan = Plan({1, 1, 1}, 20);
  plan.directory = "";
  plan.options.dropout = 0.1;
  const Outcome whole = Run(plan);
  EXPECT_EQ(whole.result.checkpoint, "");  // nothing is written
  plan.directory = Directory("run");
  plan.options.mesh = {2, 2, 2};
  plan.steps = 10;
  const Outcome first = Run(plan);
  ASSERT_TRUE(first.status.ok()) << first.status;
  const auto saved = DescribeCheckpoint(first.result.checkpoint, /*whole=*/true);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(saved->shards.size(), 8u);
  EXPECT_EQ(saved->manifest.state.texts.at(kWriterText), kVersion);
  plan.options.mesh = {1, 1, 3};
  plan.steps = 20;
  std::atomic<int> told = 0;  // every rank hears where it goes on
  TrainingEvents events;
  events.on_resumed = [&](const CheckpointOutcome& from) {
    told += from.step == 10 && from.hash == saved->hash && from.path == saved->path;
  };
  const Outcome rest = Run(plan, events);
  ASSERT_TRUE(rest.status.ok()) << rest.status;
  EXPECT_EQ(told, 3);
  for (int64_t step = 10; step < 20; ++step) {
    EXPECT_NEAR(rest.losses.at(step) / whole.losses.at(step), 1, 1e-5) << step;
  }
}

}  // namespace
}  // namespace toroid
