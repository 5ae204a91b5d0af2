// Trainer: one rank of a world that trains a model. A step is forward and backward over a global
// batch in micro-batches, then one update.
//
// SPMD: every rank makes the same calls with the same batches, in the same order. Weights,
// gradients and moments are split over the whole world (ParamStore); tokens over data and ring
// (TokenLayout), one layer's attention travels as a ring, all else is a rank's own or a sum over
// `tensor`. What a step computes depends on (model, batch, options) and, up to rounding, not on the
// mesh. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/io/model_source.h"
#include "core/model/block.h"
#include "core/train/batches.h"
#include "parallel/mesh.h"
#include "parallel/optimizer.h"
#include "parallel/param_store.h"
#include "parallel/request.h"

namespace toroid {

class ProgressBoard;

struct TrainOptions {
  MeshShape mesh;
  LayoutRule layout{LayoutRule::Kind::kZigzag, 1};
  Compute compute = Compute::kF32;  // kBF16: weights are gathered as bf16, the stored ones float32
  int threads = 1;                  // per rank
  Remat remat = Remat::kAttentionOutput;
  int64_t token_block = 512;   // rows of a feed-forward block
  int64_t packs_per_rank = 1;  // of a micro-batch, on each data rank
  bool prefetch = true;        // weights travel one group ahead
  double zeta = 0;             // z-loss
  double max_norm = 1;         // clip of the global norm, 0: none
  int64_t layers = 0;          // the first so many, 0: all
  OptimizerSpec optimizer;
};

// A global batch: packs of all data ranks, pack p for data rank p mod data of its micro-batch.
struct TrainBatch {
  std::vector<std::vector<int64_t>> documents;  // lengths, of each pack
  std::function<absl::StatusOr<Pack>(int64_t pack)> read;
};

struct StepResult {
  int64_t step = 0;
  double loss = 0;       // mean of -log p + zeta (log Z)^2 over the tokens that have a label
  double grad_norm = 0;  // before the clip, of the mean's gradient
  double rate = 0;       // learning rate
  int64_t tokens = 0;    // of the batch
  std::string skipped;   // the parameter whose gradient is not finite: no update was made
};

class Trainer {
 public:
  // Collective over `world`. `source` is opened by each rank for itself. InvalidArgument if the
  // mesh does not fit the model or the options are contradictory; OutOfRange: no memory.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(std::unique_ptr<Communicator> world,
                                                         std::shared_ptr<const ModelSource> source,
                                                         const TrainOptions& options,
                                                         ProgressBoard* board);
  ~Trainer();

  // One step with the batch of `step`. InvalidArgument if no token has a label; other errors are
  // those of `read` and of lost peers.
  absl::StatusOr<StepResult> Step(int64_t step, const TrainBatch& batch);
  // The gradient of a step alone, left in store(): its loss, sums over the world paid, no update.
  absl::StatusOr<double> Gradient(const TrainBatch& batch);

  Mesh& mesh() { return *mesh_; }
  ParamStore& store() { return *store_; }
  Backend& backend() { return *ops_; }
  Stream stream() const { return s_; }
  const ModelConfig& config() const { return source_->config; }
  int64_t updates() const { return updates_; }

 private:
  struct Tokens;        // this rank's part of a micro-batch, on the host
  struct MicroBatchOf;  // and on the device
  Trainer() = default;
  absl::Status Setup(std::unique_ptr<Communicator> world, bool counting);
  absl::StatusOr<std::vector<Tokens>> ReadBatch(const TrainBatch& batch, double& labels);
  absl::Status Reserve(const std::vector<Tokens>& batch);
  double Accumulate(const Tokens& tokens, double weight);  // this rank's part of the loss
  void Forward(MicroBatchOf& micro);
  void Backward(MicroBatchOf& micro);
  Tensor Upload(const char* name, DType type, int64_t size, const void* host);
  void Reduce(int64_t group, const FindParam& gradients);
  void At(const char* op, int64_t layer) const;

  TrainOptions options_;
  std::shared_ptr<const ModelSource> source_;
  ProgressBoard* board_ = nullptr;
  std::unique_ptr<Backend> ops_;
  Stream s_, comm_s_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<ParamLayout> layout_;
  std::vector<std::vector<ParamSpec>> specs_;  // of each group, as SumOwedOverTensor takes them
  std::unique_ptr<Arena> saved_, scratch_;
  std::unique_ptr<ParamStore> store_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t layers_ = 0, updates_ = 0;
  std::unique_ptr<Trainer> shadow_;                 // on the counting backend, of the same rank
  std::set<std::pair<int64_t, int64_t>> foreseen_;  // (tokens, longest share) with room
};

}  // namespace toroid
