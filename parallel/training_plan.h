// TrainingPlan: what one pod is asked to train, and what it writes on the way. With the model, all
// that the steps of a run are a function of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/train/spike.h"
#include "parallel/trainer.h"
#include "parallel/training_data.h"

namespace toroid {

// Histories that one run can have had.
constexpr int64_t kMostBranches = int64_t{1} << 20;

struct TrainingPlan {
  std::string job;  // its name, for logs; may be empty
  TrainOptions options;
  TrainingData data;
  int64_t steps = 0;
  uint64_t seed = 0;             // of the order of documents
  std::string directory;         // of the run, and of this pod alone; empty: nothing is written
  int64_t checkpoint_every = 0;  // steps; 0: at the end alone
  int64_t keep = 3;              // checkpoints; never less than two are kept
  int64_t epoch = 0;             // of this launch
  // The job's other pods train already: this one takes their state, and goes on with them. Policy
  // `continue`.
  bool joins = false;
  // Somebody knows that this run has a durable checkpoint of this step; 0: of none. One that finds
  // neither it nor a later one does not begin. The branch is of `directory`, kMostBranches: another
  // pod's directory has it.
  int64_t committed_step = 0, committed_branch = 0;
  std::optional<SpikeRule> spike;
  int64_t skip_limit = 10;       // steps in a row whose gradient is not finite
  int64_t param_hash_every = 0;  // steps from one hash of all weights to the next; 0: never
  int64_t memory_limit = 0;      // bytes of a rank; 0: its share of what its host has free

  // Checkpoints that stay: the newest may turn out to be damaged.
  int64_t kept() const { return std::max<int64_t>(2, keep); }
};

// Where a pod of a run in `directory` keeps what it writes: "directory/pod-1"; of a single one the
// directory itself.
std::string PodDirectory(const std::string& directory, int64_t pod, int64_t pods);

// What a plan alone says of whether it can run on so many ranks: the mesh, the sizes of batches,
// schedules and rules. InvalidArgument naming the field. Pure.
absl::Status Validate(const TrainingPlan& plan, const ModelConfig& model, int64_t ranks);

// What all pods of a run must have alike, for PodIdentity::terms: "name: value", the version first.
std::vector<std::string> PodTerms(const TrainingPlan& plan, const ModelConfig& model);

}  // namespace toroid
