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
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/io/model_source.h"
#include "core/model/block.h"
#include "core/train/batches.h"
#include "core/train/noise_scale.h"
#include "parallel/mesh.h"
#include "parallel/optimizer.h"
#include "parallel/param_store.h"
#include "parallel/pod_exchange.h"
#include "parallel/rank_memory.h"
#include "parallel/request.h"

namespace toroid {

class ProgressBoard;

// The job's pods, each a world of its own with a mesh of its own, as one of them is told.
struct PodsOptions {
  // What a pod that is away is to the others: waited for, or left out.
  enum class Policy { kHalt, kContinue };
  int64_t count = 1;
  ExchangeSpec exchange;  // of no concern with one pod, as all below
  Policy policy = Policy::kHalt;
  bool keep_contributions = false;  // what is merged is kept (merge_history.h)
};

// A rank's way to the other pods.
struct PodAccess {
  PodLink* link = nullptr;
  // Of rank 0, while another pod is waited for: whether to end the wait, and the step, with
  // Cancelled; a sentence for the user. All may be null.
  std::function<PodMail::Interrupt()> interrupted;
  std::function<void(const std::string&)> note;
  // Of rank 0, asked by several threads: who takes part now; policy `halt` asks once.
  std::function<std::optional<MembershipView>()> view;
  // Of rank 0: another pod is waited for and silent.
  std::function<void(int64_t pod)> on_silent;
  // Of rank 0: another pod is heard, but others have waited for it for so many seconds.
  std::function<void(int64_t pod, double seconds)> on_slow;
  bool joins = false;  // the others train already
};

struct TrainOptions {
  MeshShape mesh;
  LayoutRule layout{LayoutRule::Kind::kZigzag, 1};
  Compute compute = Compute::kF32;  // kBF16: weights are gathered as bf16, the stored ones float32
  Device device = Device::kCpu;
  bool share_gpus = false;  // ranks may share a GPU
  int threads = 1;          // per rank, on CPUs
  // On GPUs: the same bits from run to run, slower (CudaOptions::measures). CPUs always give them.
  bool deterministic = false;
  Remat remat = Remat::kAttentionOutput;
  int64_t token_block = 0;     // rows of a feed-forward block; 0: the backend's own
  int64_t packs_per_rank = 1;  // of a micro-batch, on each data rank
  bool prefetch = true;        // weights travel one group ahead
  double zeta = 0;             // z-loss
  double max_norm = 1;         // clip of the global norm, 0: none
  double dropout = 0;  // of what is added to the residual; drawn by (dropout_seed, step, token)
  uint64_t dropout_seed = 0;
  // Steps from one measurement of the gradient noise scale to the next, 0: never. Its small batch
  // is the step's first micro-batch, on any mesh; a step that has but one is then made in two
  // halves, hence may take twice as long.
  int64_t noise_scale_every = 0;
  int64_t layers = 0;  // the first so many, 0: all
  OptimizerSpec optimizer;
  PodsOptions pods;
};

// InvalidArgument naming the option that is out of range, or the mesh and one that fits. Pure.
absl::Status Validate(const TrainOptions& options, const ModelConfig& model, int64_t ranks);

// A global batch: packs of all pods, pack p for pod p mod pods; of its packs the i-th for data rank
// i mod data of its micro-batch.
struct TrainBatch {
  std::vector<std::vector<int64_t>> documents;  // lengths, of each pack
  std::function<absl::StatusOr<Pack>(int64_t pack)> read;
};

struct StepResult {
  int64_t step = 0;
  // Tokens that have one; 0: there is no loss. Of all pods with the exchange `exact`, else, as the
  // loss, of this pod's part of the batch.
  int64_t labels = 0;
  double loss = 0;       // mean of -log p + zeta (log Z)^2 over them
  double grad_norm = 0;  // before the clip, of the mean's gradient
  double rate = 0;       // learning rate; Step's
  int64_t tokens = 0;    // of the batch, of all pods
  std::string skipped;   // the parameter whose gradient is not finite: no update was made
  std::optional<double> noise_scale;  // in labels, over about the last hundred measurements
};

class Trainer {
 public:
  // Collective over `world`; `rounds` makes the schedules of ring attention. `source` is opened by
  // each rank for itself. `pods`: needed if there are other pods; the link outlives the trainer.
  // A pod that joins meets them later: JoinPods.
  // InvalidArgument: Validate's; OutOfRange: no memory.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(std::unique_ptr<Communicator> world,
                                                         std::shared_ptr<const ModelSource> source,
                                                         const TrainOptions& options,
                                                         ProgressBoard* board,
                                                         RoundsRule rounds = Rounds,
                                                         const PodAccess& pods = {});
  ~Trainer();

  // Waits until the other pods take this one in; its state is not here yet
  // (PodExchange::TakeState). Collective; errors are PodSwap::Create's. REQUIRES: pods.joins.
  absl::Status JoinPods(const PodAccess& pods) { return MeetPods(pods); }

  // One step with the batch of `step`. Errors are those of `read` and of lost peers.
  absl::StatusOr<StepResult> Step(int64_t step, const TrainBatch& batch);
  // The gradient of a step alone, left in store(): its loss, sums over the world paid, no update.
  // InvalidArgument if no token has a label.
  absl::StatusOr<double> Gradient(int64_t step, const TrainBatch& batch);
  // The rest of a step: norm, clip and update by the gradient that is in store(). Reads
  // result.step, fills grad_norm, skipped and noise_scale.
  absl::Status Update(StepResult& result);
  // The store was loaded from a checkpoint that `updates` updates had made, with this noise().
  void Restore(int64_t updates, const GradientNoiseScale& noise);

  PodExchange* exchange() { return exchange_.get(); }  // null: of one pod
  Mesh& mesh() { return *mesh_; }
  ParamStore& store() { return *store_; }
  Backend& backend() { return *ops_; }
  Stream stream() const { return s_; }
  const ModelConfig& config() const { return source_->config; }
  int64_t layers() const { return layers_; }
  int64_t updates() const { return updates_; }
  const GradientNoiseScale& noise() const { return noise_; }
  // Accounted bytes of this rank: parameters with gradients and moments, buffers, both arenas, the
  // communicators.
  int64_t peak_bytes() { return memory().total(); }
  RankMemory memory();
  // For how long this rank has waited for messages so far, computing nothing; none on a GPU.
  std::optional<double> exposed_seconds() const;

  // The same of rank `rank` of a world that need not exist, after a step over packs of these
  // documents; no checkpoint is written. InvalidArgument: Validate's.
  static absl::StatusOr<RankMemory> Foresee(int rank, std::shared_ptr<const ModelSource> source,
                                            const TrainOptions& options,
                                            const std::vector<std::vector<int64_t>>& packs);

 private:
  struct Tokens;        // this rank's part of a micro-batch, on the host
  struct MicroBatchOf;  // and on the device
  Trainer() = default;
  // counting: null, or what to run on in place of a device.
  absl::Status Setup(std::unique_ptr<Communicator> world, std::unique_ptr<Backend> counting,
                     const PodAccess& pods);
  absl::Status MeetPods(const PodAccess& access);
  std::vector<Range> MicroBatchesOf(int64_t step, int64_t packs) const;
  absl::StatusOr<std::vector<Tokens>> ReadBatch(int64_t step, const TrainBatch& batch,
                                                std::vector<double>& labels);
  absl::Status Reserve(const std::vector<Tokens>& batch);
  // The gradient to apply, into the store; result.loss and result.labels. False: there is none.
  absl::StatusOr<bool> GradientOf(const TrainBatch& batch, StepResult& result);
  // Of this pod's part of the batch. `labels` of them.
  absl::Status OwnGradient(const std::vector<Tokens>& tokens, const std::vector<double>& labels,
                           StepResult& result);
  // This rank's part of the loss. last: no micro-batch follows in this step.
  double Accumulate(int64_t step, const Tokens& tokens, double weight, bool last);
  void Forward(MicroBatchOf& micro);
  void Backward(MicroBatchOf& micro, const Tokens& tokens, bool last);
  Tensor Upload(const char* name, DType type, int64_t size, const void* host);
  void Reduce(int64_t group, const FindParam& gradients, bool whole);
  std::vector<double> SquaredSums(ParamStore::Kind kind);
  void At(const char* op, int64_t layer) const;

  TrainOptions options_;
  RoundsRule rounds_;
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
  std::unique_ptr<PodExchange> exchange_;
  int64_t layers_ = 0, updates_ = 0;
  int64_t ring_bytes_ = 0;  // the most of scratch that blocks of the ring have taken
  GradientNoiseScale noise_ = {.decay = 0.99};
  // Of the last Gradient, if it was measured: labels of its first micro-batch and of all, and the
  // squared norm of the first's mean gradient.
  struct Part {
    double labels = 0, all_labels = 0, squared = 0;
  };
  std::optional<Part> part_;
  std::unique_ptr<Trainer> shadow_;                 // on the counting backend, of the same rank
  std::set<std::pair<int64_t, int64_t>> foreseen_;  // (tokens, longest share) with room
};

}  // namespace toroid
