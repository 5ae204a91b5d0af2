// Engine: one rank of a world with a model loaded. Prefill as a ring, decode over the sharded
// cache, score.
//
// SPMD: every rank makes the same calls with the same requests, in the same order; results are
// whole on rank 0 and empty elsewhere. The highest thing that needs no network service, beside
// `program`, which feeds it. An engine on the counting backend runs the same lines to foresee
// memory (Foresee).
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/backend.h"
#include "core/io/model_source.h"
#include "core/model/kv_cache.h"
#include "core/model/transformer.h"
#include "core/text/tokenizer.h"
#include "parallel/mesh.h"
#include "parallel/rank_memory.h"
#include "parallel/request.h"
#include "parallel/ring_attention.h"

namespace toroid {

class ProgressBoard;

// Called on rank 0 only, between layers and tokens.
struct EngineEvents {
  std::function<void(const Progress&)> on_progress = [](const Progress&) {};
  std::function<void(const TokenEvent&)> on_token = [](const TokenEvent&) {};
  std::function<bool()> cancelled = [] { return false; };
};

// Bytes of one rank.
struct MemoryUse {
  int64_t weights = 0, kv = 0, scratch = 0, block_scratch = 0, communicator = 0;
  int64_t total() const { return weights + kv + scratch + communicator; }
};

class Engine {
 public:
  // Collective over `world`. `source` is opened by each rank for itself; the fingerprints are
  // compared before the first weight is read, and a difference names the host.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<Communicator> world,
                                                        std::shared_ptr<const ModelSource> source,
                                                        const LoadRequest& request,
                                                        ProgressBoard* board,
                                                        const EngineEvents& events = {});
  // The first `layers` layers only, 0 for all (verify).
  static absl::StatusOr<std::unique_ptr<Engine>> CreatePart(
      std::unique_ptr<Communicator> world, std::shared_ptr<const ModelSource> source,
      const LoadRequest& request, int64_t layers, ProgressBoard* board,
      const EngineEvents& events = {});
  ~Engine();

  // Reads each prompt once and makes its answers, up to request.batch of all together: one pass
  // over the weights makes a token of each. Fewer, where memory does not last. Answer i to prompt p
  // draws the random numbers of sequence p n + i, so it is the same on every mesh and in any batch,
  // but for choices nearer than rounding (min_margin): products of more rows add in another order.
  absl::StatusOr<GenerateResult> Generate(const GenerateRequest& request,
                                          const EngineEvents& events);
  absl::StatusOr<ScoreResult> Score(const ScoreRequest& request, const EngineEvents& events);

  // Runs `ids` through the layers with an observer at every tap and then hands `logits` (f64 [V])
  // of each position, in ascending order, to rank 0; null: none are made. For verify and tests.
  absl::Status Observe(
      const std::vector<int32_t>& ids, const Observer& observer,
      const std::function<void(int64_t position, const std::vector<double>&)>& logits,
      const EngineEvents& events = {});

  // What a request will use on this rank, by the same code on the counting backend; generate: in
  // the largest batch that it may have.
  absl::StatusOr<MemoryUse> ForeseeGenerate(const GenerateRequest& request);
  absl::StatusOr<MemoryUse> ForeseeScore(const ScoreRequest& request);
  // The same for rank `rank` of a world that need not exist; only the lengths of prompts count.
  static absl::StatusOr<RankMemory> Foresee(int rank, std::shared_ptr<const ModelSource> source,
                                            const LoadRequest& load,
                                            const GenerateRequest& request);

  const LoadRequest& load_request() const { return load_; }
  const ModelConfig& config() const { return model_->config(); }
  const Transformer& model() const { return *model_; }
  // Longest prompt + output.
  int64_t context() const { return load_.context > 0 ? load_.context : config().context; }
  // The longest context that the model may be loaded with: as far as its RoPE reaches, no bound for
  // random weights.
  int64_t reach() const;
  Mesh& mesh() { return *mesh_; }
  std::shared_ptr<const Tokenizer> tokenizer() const { return tokenizer_; }
  const ModelSource& source() const { return *source_; }
  std::shared_ptr<const ModelSource> shared_source() const { return source_; }
  Backend& backend() { return *ops_; }
  Stream stream() const { return s_; }
  double load_seconds() const { return load_seconds_; }
  // Deals cache pages in a random physical order from now on (tests): results must not change.
  void ShufflePages(uint64_t seed) { shuffle_seed_ = seed; }
  // Zeroes keys and values of a physical page of this rank's cache after each prefill from now on
  // (negative control of tests): results must change. Negative: none.
  void LosePage(int64_t page) { lost_page_ = page; }
  // Exchanges the tables of this rank's first two rows of a batch from now on (negative control of
  // tests): results must change.
  void SwapTables() { swap_tables_ = true; }
  // Refuses caches of more bytes from now on, as a device without the memory would (tests).
  void LimitCache(int64_t bytes) { cache_limit_ = bytes; }

 private:
  struct Rotation;  // engine_sequence.h has these
  struct Sequence;
  struct Traffic;
  struct StepRows;
  struct Answer;
  struct Batch;
  Engine() = default;
  // bytes: what a rank without a request may gather
  static constexpr int64_t kSmallScratch = 1 << 20;

  // engine.cc: set-up, checks, memory
  // counting: null, or what to run on in place of a device.
  absl::Status Setup(std::unique_ptr<Communicator> world, int64_t layers,
                     std::unique_ptr<Backend> counting, const EngineEvents& events);
  absl::Status CheckContext() const;
  absl::Status CheckRequest(const std::vector<int32_t>& ids, int64_t max_tokens) const;
  // Cancelled if rank 0 was asked to stop; an error if any rank lost its peers.
  absl::Status StepStatus(const EngineEvents& events);
  absl::Status Reserve(const absl::StatusOr<MemoryUse>& foreseen);
  MemoryUse Used() const;
  // Where this rank is, for the stall watch.
  void At(const char* op, int64_t layer, int64_t round) const;
  std::vector<CommCounters> Counters();
  // Between two calls of Counters; prefilled: the same when the prompt had been read.
  static Traffic TrafficOf(const std::vector<CommCounters>& before,
                           const std::vector<CommCounters>& prefilled,
                           const std::vector<CommCounters>& after);
  void FillReport(const MemoryUse& foreseen, const Traffic& traffic, RunReport& report);

  // engine_forward.cc: passes over tokens
  Rotation NewRotation(int64_t limit);
  void Begin(Sequence& sequence);
  Pass NewPass(const Rotation& rotation, int64_t tokens, Tensor positions_t);
  absl::StatusOr<Tensor> Prefill(Sequence& sequence);
  Tensor Decode(const Rotation& rotation, const StepRows& step);
  Tensor GatherRows(const Sequence& sequence, Tensor x_uD, const std::vector<int64_t>& positions);
  Tensor NewLogits(Tensor h_nD);
  std::vector<std::vector<double>> HostLogits(Tensor logits_snc);
  std::vector<double> LastLogits(Tensor h_1D);
  int64_t OwnerOfNew(int64_t position) const;  // ring rank
  void Report(const Sequence& sequence, double layers) const;

  // generate.cc: a request, its memory and its prompts
  absl::Status CheckGenerate(const GenerateRequest& request) const;
  std::vector<int32_t> LocalPositions(const TokenLayout& layout, int64_t limit) const;
  KvCacheRoom RoomFor(const GenerateRequest& request, int64_t rows) const;
  absl::StatusOr<MemoryUse> DryGenerate(const GenerateRequest& request, int64_t rows);
  absl::StatusOr<MemoryUse> ReserveBatch(const GenerateRequest& request, int64_t& rows);
  absl::Status PromptLogProbs(const Sequence& sequence, Tensor x_uD, int64_t count,
                              std::vector<std::pair<int64_t, double>>& log_probs);
  absl::Status ReadPrompt(Batch& batch, int64_t prompt_index, Answer& first);

  // decode_batch.cc: its answers
  absl::Status MakeAnswers(Batch& batch);
  absl::Status Admit(Batch& batch);
  absl::Status Draw(Batch& batch);
  void Leave(Batch& batch);
  void Step(Batch& batch);
  bool DrawsOnDevice(const GenerateRequest& request) const;
  Tensor SampleRows(Tensor logits_snc, const std::vector<SampleRow>& rows);

  // score.cc
  absl::StatusOr<MemoryUse> DryScore(const ScoreRequest& request);
  std::vector<double> OwnLogProbs(const Sequence& sequence, Tensor x_uD);

  LoadRequest load_;
  std::shared_ptr<const ModelSource> source_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  ProgressBoard* board_ = nullptr;
  std::unique_ptr<Backend> ops_;
  std::unique_ptr<Mesh> mesh_;
  Stream s_, comm_s_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<Arena> scratch_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Engine> shadow_;  // on the counting backend, of the same rank
  std::vector<int64_t> stop_ids_;   // the model's end-of-sequence ids
  uint64_t shuffle_seed_ = 0;
  int64_t lost_page_ = -1;
  bool swap_tables_ = false;
  int64_t cache_limit_ = std::numeric_limits<int64_t>::max();  // bytes
  double load_seconds_ = 0;
  int64_t ring_bytes_ = 0;  // the most of scratch that blocks of the ring have taken
};

}  // namespace toroid
