// What a job will need on each rank before there is any: the job's own code on the counting
// backend, once for each kind of rank; with Device::kCuda as on GPUs, whose memory alone it then
// tells. No weight is touched, so that a mesh of thousands of ranks takes seconds on a laptop.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/model_source.h"
#include "parallel/rank_memory.h"
#include "parallel/request.h"
#include "parallel/trainer.h"

namespace toroid {

// Steps over batches of whole sequences.
struct PlannedTraining {
  TrainOptions options;
  int64_t sequence_length = 0;
  int64_t batch_tokens = 0;  // of all ranks, one step
  bool checkpoints = true;   // are written
  // Advised sequence lengths divide it too: the batches of a ramp's other stages. 0: there are
  // none.
  int64_t batch_unit = 0;
  // Advice names fields of a job's spec, "--set train.remat=BLOCK", not plan's flags.
  bool of_spec = false;
};

// Prompts and their output that fill the context.
struct PlannedInference {
  LoadRequest load;          // context 0: the model's own
  int64_t max_tokens = 256;  // of the context, made
  int64_t prompts = 1;
  int64_t n = 1;      // answers to each
  int64_t batch = 0;  // as GenerateRequest's
};

struct MemoryPlan {
  // Ranks that need the same, in the order of their first.
  struct Group {
    RankMemory memory;
    std::vector<int> ranks;
  };
  MeshShape mesh;
  std::vector<Group> groups;
  int64_t most() const;  // bytes of the rank that needs most
};

// InvalidArgument if the mesh does not fit the model or the job is none.
absl::StatusOr<MemoryPlan> PlanMemory(std::shared_ptr<const ModelSource> source,
                                      const PlannedTraining& job);
absl::StatusOr<MemoryPlan> PlanMemory(std::shared_ptr<const ModelSource> source,
                                      const PlannedInference& job);

// Changes after which no rank needs more than `limit` bytes, the smallest first, as a user writes
// them: "--remat block: 1.2 GiB". Options that cost only time come first, then larger meshes (an
// axis doubled, and again), then shorter texts. Each is the smallest of its kind: one sequence more
// in a micro-batch, half the mesh, the next longer sequence that divides the batch or 64 tokens
// more of context do not fit. Empty if none was found.
std::vector<std::string> Advise(std::shared_ptr<const ModelSource> source,
                                const PlannedTraining& job, int64_t limit);
std::vector<std::string> Advise(std::shared_ptr<const ModelSource> source,
                                const PlannedInference& job, int64_t limit);

// InvalidArgument if sequences of so many tokens are longer than the positions that were learned.
absl::Status CheckPositions(const ModelConfig& model, int64_t sequence_length);

// FailedPrecondition naming the rank that needs most, what it needs and the first advice, if the
// job does not fit.
absl::Status CheckFits(std::shared_ptr<const ModelSource> source, const PlannedTraining& job,
                       int64_t limit);

}  // namespace toroid
