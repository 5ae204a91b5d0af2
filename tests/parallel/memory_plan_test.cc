// plan's bytes against what the arenas of a real run measure.
#include "parallel/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/cuda_memory.h"
#include "core/io/random_model.h"
#include "parallel/checkpoint.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

PlannedTraining SmallJob(MeshShape mesh, Remat remat = Remat::kAttentionOutput) {
  PlannedTraining job;
  job.options.mesh = mesh;
  job.options.optimizer.rate.peak = 1e-3;
  job.options.remat = remat;
  job.options.token_block = 16;
  job.sequence_length = 96;
  job.batch_tokens = 4 * 96;
  job.checkpoints = false;
  return job;
}

// Accounted bytes of each rank after two real steps.
std::vector<RankMemory> Measure(const std::string& model, const PlannedTraining& job) {
  std::vector<RankMemory> measured(size_t(job.options.mesh.size()));
  RunOnRanks(int(job.options.mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    auto trainer = Trainer::Create(std::move(world), TestSource(model), job.options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    TrainBatch batch;
    const int64_t packs = job.batch_tokens / job.sequence_length;
    batch.documents.assign(size_t(packs), {job.sequence_length});
    batch.read = [&](int64_t i) -> absl::StatusOr<Pack> {
      Pack pack;
      pack.ids = MixedIds(job.sequence_length, 256);
      pack.ids[0] = int32_t(i);
      pack.labels.assign(pack.ids.begin() + 1, pack.ids.end());
      pack.labels.push_back(-1);
      pack.document_lengths = {job.sequence_length};
      return pack;
    };
    for (int64_t step = 0; step < 2; ++step) {
      const auto result = (*trainer)->Step(step, batch);
      ASSERT_TRUE(result.ok()) << result.status();
    }
    measured[size_t(rank)] = (*trainer)->memory();
    if (job.checkpoints) {
      measured[size_t(rank)].checkpoint_copy = CheckpointCopyBytes((*trainer)->store());
    }
    EXPECT_EQ((*trainer)->memory().total(), (*trainer)->peak_bytes());
  });
  return measured;
}

int64_t WithoutCommunicator(const RankMemory& m) { return m.total() - m.communicator; }

TEST(MemoryPlan, ForeseesTrainingToTheByte) {
  struct Case {
    const char* model;
    MeshShape mesh;
    Remat remat;
    Compute compute = Compute::kF32;
    int64_t packs_per_rank = 1;
  };
  const Case cases[] = {
      {"random:tiny-gqa", {1, 1, 1}, Remat::kNone},
      {"random:tiny-gqa", {1, 1, 1}, Remat::kBlock, Compute::kF64, 2},
      {"random:tiny-gqa", {2, 1, 2}, Remat::kAttentionOutput},
      {"random:tiny-gqa", {1, 3, 1}, Remat::kBlock},
      {"random:tiny-mqa", {1, 2, 3}, Remat::kNone, Compute::kBF16},
      {"random:tiny-qwen3", {3, 1, 1}, Remat::kAttentionOutput},  // a ragged last micro-batch
      {"random:palm-tiny", {1, 2, 2}, Remat::kBlock},
      {"random:gpt3-tiny", {2, 2, 1}, Remat::kNone},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.model, " ", ToString(c.mesh), " remat ", int(c.remat)));
    PlannedTraining job = SmallJob(c.mesh, c.remat);
    job.checkpoints = true;
    job.options.compute = c.compute;
    job.options.packs_per_rank = c.packs_per_rank;
    const auto plan = PlanMemory(TestSource(c.model), job);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const std::vector<RankMemory> measured = Measure(c.model, job);
    size_t seen = 0;
    for (const MemoryPlan::Group& group : plan->groups) {
      for (const int rank : group.ranks) {
        const RankMemory& real = measured[size_t(rank)];
        EXPECT_EQ(group.memory.weights, real.weights) << rank;
        EXPECT_EQ(group.memory.optimizer, real.optimizer) << rank;
        EXPECT_EQ(group.memory.gradients, real.gradients) << rank;
        EXPECT_EQ(group.memory.activations, real.activations) << rank;
        EXPECT_EQ(group.memory.ring_buffers, real.ring_buffers) << rank;
        EXPECT_EQ(group.memory.checkpoint_copy, real.checkpoint_copy) << rank;
        // The communicator is MPI's there, threads' here; tests/e2e/train.py compares it.
        EXPECT_EQ(WithoutCommunicator(group.memory), WithoutCommunicator(real)) << rank;
        ++seen;
      }
    }
    EXPECT_EQ(seen, measured.size());
    // Control: a job twice as long is not foreseen so.
    job.sequence_length *= 2;
    EXPECT_GT(WithoutCommunicator(PlanMemory(TestSource(c.model), job)->groups[0].memory),
              WithoutCommunicator(measured[0]));
  }
}

// Of a GPU that is not here: its own bytes, activations in its types, nothing of the host's. (What
// a GPU says of it: cuda_memory_test.cc.)
TEST(MemoryPlan, OfGpusTellsOfTheirMemory) {
  PlannedTraining job = SmallJob({1, 1, 1}, Remat::kNone);
  job.checkpoints = true;
  job.options.compute = Compute::kBF16;
  const auto source = TestSource("random:tiny-gqa");
  const RankMemory cpu = PlanMemory(source, job)->groups[0].memory;
  job.options.device = Device::kCuda;
  const RankMemory gpu = PlanMemory(source, job)->groups[0].memory;
  EXPECT_EQ(gpu.device, CudaRankBytes());
  EXPECT_GT(gpu.device, CudaWorkspaceBytes());
  EXPECT_EQ(gpu.checkpoint_copy, 0);
  EXPECT_GT(cpu.checkpoint_copy, 0);
  EXPECT_EQ(cpu.device, 0);
  EXPECT_EQ(gpu.weights, cpu.weights);
  EXPECT_LT(gpu.activations, cpu.activations);  // bf16 in place of float32
  job.options.compute = Compute::kF64;
  EXPECT_EQ(PlanMemory(source, job).status().code(), absl::StatusCode::kInvalidArgument);

  PlannedInference generate;
  generate.load.model = "random:tiny-1m:q4_1";
  generate.load.context = 150;
  generate.load.device = Device::kCuda;
  const RankMemory made = PlanMemory(TestSource(generate.load.model), generate)->groups[0].memory;
  EXPECT_EQ(made.device, CudaRankBytes());
  // 5 bits a weight, of which the plain model has 32.
  generate.load.model = "random:tiny-1m";
  const RankMemory plain = PlanMemory(TestSource(generate.load.model), generate)->groups[0].memory;
  EXPECT_NEAR(double(made.weights) / double(plain.weights), 5.0 / 32, 3e-3);
}

TEST(MemoryPlan, ForeseesGenerateToTheByte) {
  for (const MeshShape mesh :
       {MeshShape{1, 1, 1}, MeshShape{1, 3, 1}, MeshShape{1, 2, 2}, MeshShape{2, 1, 1}}) {
    for (const int64_t n : {1, 3}) {
      SCOPED_TRACE(ToString(mesh) + " " + std::to_string(n));
      PlannedInference job;
      job.load.model = "random:tiny-gqa";
      job.load.mesh = mesh;
      job.load.context = 150;
      job.max_tokens = 20;
      job.n = n;
      const auto plan = PlanMemory(TestSource(job.load.model), job);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EngineCase c;
      c.mesh = mesh;
      c.compute = Compute::kF32;
      c.context = 150;
      GenerateRequest request;
      request.prompt_ids = MixedIds(130, 256);
      request.max_tokens = 20;
      request.ignore_eos = true;
      request.n = n;
      const GenerateResult result = GenerateOn(c, request);
      for (const MemoryPlan::Group& group : plan->groups) {
        for (const int rank : group.ranks) {
          EXPECT_NEAR(double(group.memory.total()), double(result.report.memory.predicted[rank]),
                      0.001 * result.report.memory.predicted[rank]);
          EXPECT_EQ(group.memory.activations + group.memory.ring_buffers,
                    result.report.memory.scratch[rank]);
          EXPECT_EQ(group.memory.weights, result.report.memory.weights[rank]);
        }
      }
    }
  }
}

TEST(MemoryPlan, CountsTheCopyThatCheckpointsAreWrittenFrom) {
  PlannedTraining job = SmallJob({1, 1, 3});
  const auto source = TestSource("random:tiny-gqa");
  const MemoryPlan without = *PlanMemory(source, job);
  job.checkpoints = true;
  const MemoryPlan with = *PlanMemory(source, job);
  int64_t copies = 0;
  for (size_t i = 0; i < with.groups.size(); ++i) {
    copies += with.groups[i].memory.checkpoint_copy * int64_t(with.groups[i].ranks.size());
    EXPECT_EQ(with.groups[i].memory.total() - with.groups[i].memory.checkpoint_copy,
              without.groups[i].memory.total());
  }
  EXPECT_EQ(copies, 12 * source->config.ParameterCount());  // weights and moments, each once
}

// Ranks of `tensor` that hold elements of a parameter, summed over its elements: the definition of
// each Split, head by head.
int64_t HeldElements(const ModelConfig& config, const ParamSpec& spec, int64_t tensor) {
  const int64_t elements = spec.rows * spec.cols;
  if (spec.split == Split::kReplicated) return elements * tensor;
  if (spec.split != Split::kKvHeads) return elements;
  std::set<std::pair<int64_t, int64_t>> holders;  // (rank, KV head)
  for (int64_t rank = 0; rank < tensor; ++rank) {
    for (int64_t head = rank * config.query_heads / tensor;
         head < (rank + 1) * config.query_heads / tensor; ++head) {
      holders.insert({rank, head * config.kv_heads / config.query_heads});
    }
  }
  return elements / config.kv_heads * int64_t(holders.size());
}

// Of every preset on any mesh: each rank once, and the sums over ranks are the model's.
TEST(MemoryPlan, EveryPresetIsPlannedOnAnyMesh) {
  int64_t refused = 0;
  for (const ModelConfig& config : RandomShapes()) {
    const auto source = TestSource("random:" + config.name);
    std::vector<ParamSpec> table = ParamTable(config);
    std::erase_if(table, [](const ParamSpec& spec) { return !spec.alias.empty(); });
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{2, 3, 1}, MeshShape{1, 2, 4},
                                 MeshShape{3, 5, 5}, MeshShape{7, 1, 6}}) {
      SCOPED_TRACE(absl::StrCat(config.name, " ", ToString(mesh)));
      PlannedTraining job;
      job.options.mesh = mesh;
      job.sequence_length = 500;  // the fewest learned positions are 512
      job.batch_tokens = 4 * mesh.data * job.sequence_length;
      const auto plan = PlanMemory(source, job);
      if (mesh.tensor > config.query_heads) {
        EXPECT_TRUE(absl::IsInvalidArgument(plan.status())) << plan.status();
        ++refused;
        continue;
      }
      ASSERT_TRUE(plan.ok()) << plan.status();
      std::set<int> ranks;
      int64_t moments = 0, copies = 0;  // bytes of all ranks
      const int64_t constants = int64_t(table.size()) * 5 * 8;
      for (const MemoryPlan::Group& group : plan->groups) {
        const RankMemory& m = group.memory;
        const int64_t count = int64_t(group.ranks.size()), state = (m.optimizer - constants) / 2;
        ranks.insert(group.ranks.begin(), group.ranks.end());
        moments += count * 2 * state;
        copies += count * m.checkpoint_copy;
        EXPECT_GE(m.weights, state);
        EXPECT_GE(m.gradients, state);
        EXPECT_GT(m.activations, 0);
        EXPECT_EQ(m.communicator > 0, mesh.size() > 1);
      }
      EXPECT_EQ(ranks.size(), size_t(mesh.size()));
      EXPECT_EQ(*ranks.rbegin(), int(mesh.size()) - 1);
      int64_t held = 0;
      for (const ParamSpec& spec : table) held += HeldElements(config, spec, mesh.tensor);
      // Each parameter begins at a multiple of 64 elements, each group's buffer is one of 64 for
      // each rank of the shard.
      const int64_t pads =
          64 * mesh.tensor * (int64_t(table.size()) + (config.layers + 2) * mesh.data * mesh.ring);
      EXPECT_GE(moments, 8 * held);
      EXPECT_LE(moments, 8 * (held + pads));
      EXPECT_EQ(copies, 12 * config.ParameterCount());  // each element once
    }
  }
  EXPECT_GT(refused, 0);  // fewer heads than ranks of tensor
}

TEST(MemoryPlan, LargeMeshesOfLargeModelsTakeSeconds) {
  const auto begin = std::chrono::steady_clock::now();
  PlannedTraining job;
  job.options.mesh = {64, 8, 12};
  job.sequence_length = 2048;
  job.batch_tokens = 1 << 20;
  const auto source = TestSource("random:palm-540b");
  const auto plan = PlanMemory(source, job);
  ASSERT_TRUE(plan.ok()) << plan.status();
  size_t ranks = 0;
  for (const MemoryPlan::Group& group : plan->groups) ranks += group.ranks.size();
  EXPECT_EQ(ranks, 64u * 8 * 12);
  // Two float32 moments of 540 billion parameters over all ranks, each of which has a copy of the
  // one KV head.
  const RankMemory& m = plan->groups[0].memory;
  EXPECT_NEAR(double(m.optimizer), 8.0 * double(source->config.ParameterCount()) / (64 * 8 * 12),
              0.03 * double(m.optimizer));
  EXPECT_GT(m.ring_buffers, 0);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 20);
}

TEST(MemoryPlan, AdviceFitsAndLessDoesNot) {
  const auto source = TestSource("random:tiny-gqa");
  PlannedTraining job = SmallJob({1, 1, 1}, Remat::kNone);
  job.sequence_length = 2048;
  job.batch_tokens = 2 * 2048;
  const int64_t need = PlanMemory(source, job)->most();
  EXPECT_TRUE(CheckFits(source, job, need).ok());
  const absl::Status refused = CheckFits(source, job, need - 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--remat attention_output"));
  PlannedTraining changed = job;
  changed.options.remat = Remat::kAttentionOutput;
  EXPECT_LE(PlanMemory(source, changed)->most(), need - 1);

  changed.options.remat = Remat::kBlock;
  const int64_t least = PlanMemory(source, changed)->most();
  const std::vector<std::string> advice = Advise(source, job, least - 1);  // remat is not enough
  ASSERT_GE(advice.size(), 2u);
  EXPECT_THAT(advice[0], HasSubstr("--mesh"));
  EXPECT_THAT(advice[1], HasSubstr("--sequence-length 1024"));
  EXPECT_THAT(Advise(source, job, 1000), IsEmpty());
  EXPECT_THAT(std::string(CheckFits(source, job, 1000).message()), HasSubstr("no change"));

  PlannedInference generate;
  generate.load.context = 4096;
  const int64_t bytes = PlanMemory(source, generate)->most();
  const std::vector<std::string> how = Advise(source, generate, bytes - 1);
  ASSERT_FALSE(how.empty());
  EXPECT_THAT(how[0], HasSubstr("--compute bf16"));
  EXPECT_THAT(how.back(), HasSubstr("--context 4032"));
  generate.load.context = 4032;
  EXPECT_LE(PlanMemory(source, generate)->most(), bytes - 1);
}

// Of each kind of advice the next smaller change does not fit: it is planned and compared.
TEST(MemoryPlan, EveryAdviceIsTheSmallestOfItsKind) {
  const auto source = TestSource("random:tiny-gqa");
  PlannedTraining job = SmallJob({1, 1, 1});
  job.options.packs_per_rank = 8;
  job.sequence_length = 480;
  job.batch_tokens = 12 * 480;
  const auto need = [&](int64_t packs, Remat remat, int64_t length) {
    PlannedTraining changed = job;
    changed.options.packs_per_rank = packs;
    changed.options.remat = remat;
    changed.sequence_length = length;
    return PlanMemory(source, changed)->most();
  };
  const auto most = [](const std::string& line, const std::string& before) {
    return line.compare(0, before.size(), before) == 0;
  };
  constexpr Remat kGiven = Remat::kAttentionOutput;
  for (int64_t packs = 8; packs > 1; --packs) {
    const int64_t limit = need(packs, kGiven, 480) - 1;
    if (need(packs - 1, kGiven, 480) > limit) continue;  // both end with the same rest
    const std::vector<std::string> advice = Advise(source, job, limit);
    ASSERT_FALSE(advice.empty());
    EXPECT_TRUE(most(advice[0], absl::StrCat("--packs-per-rank ", packs - 1, ": "))) << advice[0];
    EXPECT_THAT(advice[1], HasSubstr("--mesh data="));
    int64_t length = 479;  // the greatest that fits of those which the batch is a multiple of
    while (job.batch_tokens % length != 0 || need(8, kGiven, length) > limit) --length;
    EXPECT_TRUE(most(advice.back(), absl::StrCat("--sequence-length ", length, ": ")))
        << advice.back() << ", not " << length;
  }
  // One sequence at a time is not enough: layers are computed again, as many at a time as may be.
  const int64_t limit = need(1, kGiven, 480) - 1;
  int64_t packs = 8;
  while (need(packs, Remat::kBlock, 480) > limit) --packs;
  const std::string both = absl::StrCat("--packs-per-rank ", packs, " --remat block: ");
  EXPECT_TRUE(most(Advise(source, job, limit)[0], both)) << Advise(source, job, limit)[0];
  // Batches of a ramp's stages are whole sequences too.
  job.batch_unit = 480;
  EXPECT_TRUE(
      most(Advise(source, job, need(8, kGiven, 480) - 1).back(), "--sequence-length 240: "));
}

TEST(MemoryPlan, RefusesWhatIsNoJob) {
  const auto source = TestSource("random:tiny-gqa");
  const auto refusal = [&](const PlannedTraining& job) {
    const absl::Status status = PlanMemory(source, job).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(SmallJob({1, 1, 10})), HasSubstr("10"));  // more than 9 query heads
  EXPECT_THAT(refusal(SmallJob({0, 1, 1})), HasSubstr("data=0"));
  EXPECT_THAT(refusal(SmallJob({1 << 20, 1, 1})), HasSubstr("65536"));
  PlannedTraining job = SmallJob({1, 1, 1});
  job.batch_tokens = 95;
  EXPECT_THAT(refusal(job), HasSubstr("95"));
  job.sequence_length = 0;
  EXPECT_THAT(refusal(job), HasSubstr("sequence length"));
  job = SmallJob({1, 1, 1});
  job.sequence_length = job.batch_tokens = 2048;
  EXPECT_THAT(std::string(PlanMemory(TestSource("random:gpt2-124m"), job).status().message()),
              HasSubstr("learned 1024 positions"));
  EXPECT_TRUE(PlanMemory(source, job).ok());  // negative control: rotated ones go on
}

}  // namespace
}  // namespace toroid
