// Engine: one rank of a world with a model loaded. Prefill as a ring, decode over the sharded
// cache, score.
//
// SPMD: every rank makes the same calls with the same requests, in the same order; results are
// whole on rank 0 and empty elsewhere. The highest thing that needs no network service, beside
// `program`, which feeds it. An engine on the counting backend runs the same lines to foresee
// memory (Foresee).
#pragma once

#include <functional>
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

  // Answers one after the other. Answer i to prompt p draws the random numbers of sequence p n + i,
  // so it is the same on every mesh.
  absl::StatusOr<GenerateResult> Generate(const GenerateRequest& request,
                                          const EngineEvents& events);
  absl::StatusOr<ScoreResult> Score(const ScoreRequest& request, const EngineEvents& events);

  // Runs `ids` through the layers with an observer at every tap and then hands `logits` (f64 [V])
  // of each position, in ascending order, to rank 0; null: none are made. For verify and tests.
  absl::Status Observe(
      const std::vector<int32_t>& ids, const Observer& observer,
      const std::function<void(int64_t position, const std::vector<double>&)>& logits,
      const EngineEvents& events = {});

  // What a request will use on this rank, by the same code on the counting backend; generate: for
  // its first prompt.
  absl::StatusOr<MemoryUse> ForeseeGenerate(const GenerateRequest& request);
  absl::StatusOr<MemoryUse> ForeseeScore(const ScoreRequest& request);
  // The same for rank `rank` of a world that need not exist: a prompt of so many tokens, and
  // max_tokens more.
  static absl::StatusOr<RankMemory> Foresee(int rank, std::shared_ptr<const ModelSource> source,
                                            const LoadRequest& request, int64_t prompt_tokens,
                                            int64_t max_tokens);

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

 private:
  // A request's text as this rank holds it, for as long as the request runs.
  struct Sequence;
  Engine() = default;

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
  void FillReport(const MemoryUse& foreseen, const std::vector<CommCounters>& before,
                  const std::vector<CommCounters>& prefilled, RunReport& report);

  // engine_forward.cc: passes over tokens
  absl::Status Begin(Sequence& sequence);
  Pass NewPass(const Sequence& sequence, int64_t tokens, Tensor positions_t);
  absl::StatusOr<Tensor> Prefill(Sequence& sequence);
  Tensor Decode(Sequence& sequence, int32_t id);
  Tensor GatherRows(const Sequence& sequence, Tensor x_uD, const std::vector<int64_t>& positions);
  std::vector<double> LastLogits(const Sequence& sequence, Tensor h_1D);
  int64_t OwnerOfNew(int64_t position) const;  // ring rank
  void Report(const Sequence& sequence, double layers) const;

  // generate.cc, score.cc
  absl::StatusOr<MemoryUse> DryGenerate(const GenerateRequest& request,
                                        const std::vector<int32_t>& prompt_ids);
  absl::StatusOr<MemoryUse> DryScore(const ScoreRequest& request);
  absl::Status PromptLogProbs(const Sequence& sequence, Tensor x_uD, int64_t count,
                              GenerateResult& result);
  absl::Status CheckGenerate(const GenerateRequest& request) const;
  absl::Status AnswerPrompt(const GenerateRequest& request, int64_t prompt_index,
                            const EngineEvents& events, std::vector<GenerateResult>& answers);
  absl::StatusOr<std::vector<double>> ReadPrompt(Sequence& sequence, const GenerateRequest& request,
                                                 GenerateResult& result,
                                                 std::vector<CommCounters>& prefilled);
  absl::Status Continue(Sequence& sequence, const GenerateRequest& request,
                        std::vector<double> logits, GenerateResult& result);
  absl::Status DecodeLoop(Sequence& sequence, const GenerateRequest& request,
                          std::vector<double> logits, GenerateResult& result);
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
  double load_seconds_ = 0;
  int64_t ring_bytes_ = 0;  // the most of scratch that blocks of the ring have taken
};

}  // namespace toroid
