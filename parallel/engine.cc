#include "parallel/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/cuda_memory.h"
#include "core/model/rope.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "parallel/counting_communicator.h"
#include "parallel/device.h"
#include "parallel/engine_sequence.h"
#include "parallel/host_exchange.h"
#include "parallel/progress_board.h"
#include "parallel/same_model.h"

namespace toroid {
namespace {

constexpr int64_t kUnbounded = int64_t{1} << 56;  // bytes: the counting backend's arena

DType TypeOf(Compute compute) { return compute == Compute::kF64 ? DType::kF64 : DType::kF32; }

// The most memory that the operating system has seen resident in this process, bytes.
int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == "VmHWM:") {
      int64_t kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  }
  return 0;
}

}  // namespace

Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<Communicator> world,
                                                       std::shared_ptr<const ModelSource> source,
                                                       const LoadRequest& request,
                                                       ProgressBoard* board,
                                                       const EngineEvents& events) {
  return CreatePart(std::move(world), std::move(source), request, 0, board, events);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::CreatePart(
    std::unique_ptr<Communicator> world, std::shared_ptr<const ModelSource> source,
    const LoadRequest& request, int64_t layers, ProgressBoard* board, const EngineEvents& events) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<Engine> engine(new Engine());
  engine->load_ = request;
  engine->source_ = std::move(source);
  engine->board_ = board;
  TOROID_RETURN_IF_ERROR(engine->Setup(std::move(world), layers, /*counting=*/nullptr, events));
  engine->load_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return engine;
}

absl::Status Engine::Setup(std::unique_ptr<Communicator> world, int64_t layers,
                           std::unique_ptr<Backend> counting_ops, const EngineEvents& events) {
  const int rank = world->rank();
  const bool counting = counting_ops != nullptr;
  const DType type = TypeOf(load_.compute);
  const ModelConfig& shape = source_->config;
  if (shape.positions == PositionKind::kLearned && load_.context > shape.context) {
    return absl::InvalidArgumentError(absl::StrCat("--context ", load_.context, ": ", load_.model,
                                                   " has learned positions for ", shape.context,
                                                   " tokens: use --context up to ", shape.context));
  }
  if (counting) {
    ops_ = std::move(counting_ops);
  } else {
    TOROID_ASSIGN_OR_RETURN(
        RankDevice device,
        NewRankDevice(std::move(world),
                      {load_.device, load_.compute, load_.share_gpus, load_.threads},
                      board_ != nullptr ? board_->ticks() : nullptr));
    ops_ = std::move(device.ops);
    world = std::move(device.world);
  }
  s_ = ops_->NewStream(/*communication=*/false);
  comm_s_ = ops_->NewStream(/*communication=*/true);
  mesh_ = std::make_unique<Mesh>(std::move(world), load_.mesh);
  scratch_ = std::make_unique<Arena>(*ops_, "scratch");
  TOROID_RETURN_IF_ERROR(scratch_->Reserve(counting ? kUnbounded : kSmallScratch));
  if (!counting) {
    TOROID_RETURN_IF_ERROR(CheckSameModel(mesh_->world(), *source_, load_.verify_weights));
    TOROID_RETURN_IF_ERROR(CheckContext());
    absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = std::shared_ptr<const Tokenizer>();
    if (rank == 0 && source_->tokenizer.kind != TokenizerSource::Kind::kNone) {
      tokenizer = Tokenizer::FromSource(source_->tokenizer);
    }
    TOROID_RETURN_IF_ERROR(ShareStatus(mesh_->world(), tokenizer.status()));
    tokenizer_ = *tokenizer;
    stop_ids_ = source_->generation.eos_ids;
    if (stop_ids_.empty() && tokenizer_ != nullptr && tokenizer_->eos_id() >= 0) {
      stop_ids_.push_back(tokenizer_->eos_id());
    }
  }
  Transformer::Options options;
  options.tensor_rank = mesh_->tensor_rank();
  options.tensor_size = load_.mesh.tensor;
  options.compute = load_.compute == Compute::kBF16 ? DType::kBF16 : type;
  options.layers = layers;
  options.threads = load_.threads;
  options.load = !counting;
  options.progress = [&](int64_t done, int64_t total) {
    At("load", -1, done >> 20);
    if (rank == 0) events.on_progress({"load", done, total});
  };
  auto model = Transformer::Create(*source_, *ops_, s_, options);
  TOROID_RETURN_IF_ERROR(ShareStatus(mesh_->world(), model.status()));
  model_ = std::move(*model);
  const HeadLayout& heads = model_->layout().heads();
  cache_ = std::make_unique<KvCache>(
      *ops_, KvCacheShape{model_->layers(), heads.kv_count(), config().head_dim, load_.page_tokens,
                          load_.compute == Compute::kBF16 ? DType::kBF16 : type});
  if (counting) return absl::OkStatus();
  shadow_.reset(new Engine());
  shadow_->load_ = load_;
  shadow_->source_ = source_;
  return shadow_->Setup(NewCountingTwin(mesh_->world(), s_), layers, NewCountingBackend(*ops_), {});
}

int64_t Engine::reach() const {
  const bool trained = !source_->random_seed.has_value();
  return trained ? RopeReach(source_->config) : std::numeric_limits<int64_t>::max();
}

// The same on every rank: the configuration is part of what CheckSameModel compares.
absl::Status Engine::CheckContext() const {
  if (load_.context <= reach()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the context of ", load_.context, " tokens is beyond the ", reach(), " that ",
                   load_.model, " was made for: give --context ", reach(),
                   " or less, or a model whose RoPE scaling reaches"
                   " that far"));
}

absl::Status Engine::CheckRequest(const std::vector<int32_t>& ids, int64_t max_tokens) const {
  if (ids.empty()) return absl::InvalidArgumentError("the prompt has no tokens: give at least one");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config().vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", ids[i], " at position ", i,
                                                     " is outside the vocabulary: use ids 0 to ",
                                                     config().vocab - 1));
    }
  }
  if (max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max tokens is ", max_tokens, ": use 0 or more"));
  }
  const int64_t prompt = int64_t(ids.size());
  if (prompt > context() || max_tokens > context() - prompt) {
    return absl::OutOfRangeError(absl::StrCat(
        "the prompt's ", prompt, " tokens and ", max_tokens, " new ones are beyond the context of ",
        context(), " tokens: shorten the prompt",
        context() < reach() ? ", ask for fewer tokens or raise --context"
                            : " or ask for fewer tokens"));
  }
  return absl::OkStatus();
}

absl::Status Engine::StepStatus(const EngineEvents& events) {
  const bool cancelled = mesh_->rank() == 0 && events.cancelled();
  const int64_t worst = mesh_->Agree(!mesh_->Health().ok() ? 2 : cancelled ? 1 : 0);
  TOROID_RETURN_IF_ERROR(mesh_->Health());
  if (worst == 1) return absl::CancelledError("cancelled");
  if (worst != 0) return absl::UnavailableError("another rank lost its peers");
  return absl::OkStatus();
}

absl::Status Engine::Reserve(const absl::StatusOr<MemoryUse>& foreseen) {
  absl::Status status = foreseen.status();
  if (status.ok()) status = scratch_->Reserve(std::max(foreseen->scratch, kSmallScratch));
  scratch_->ResetPeak();
  return ShareStatus(mesh_->world(), status);
}

void Engine::At(const char* op, int64_t layer, int64_t round) const {
  if (board_ != nullptr) board_->At(op, layer, round);
}

MemoryUse Engine::Used() const {
  MemoryUse use;
  use.weights = model_->weight_bytes();
  use.kv = cache_->bytes_reserved();
  use.scratch = scratch_->peak();
  use.block_scratch = scratch_->block_peak();
  for (Axis axis : {Axis::kData, Axis::kRing, Axis::kTensor, Axis::kShard, Axis::kWorld}) {
    use.communicator += mesh_->axis(axis).communicator_bytes();
  }
  return use;
}

std::vector<CommCounters> Engine::Counters() {
  std::vector<CommCounters> all;
  for (Axis axis : {Axis::kData, Axis::kRing, Axis::kTensor, Axis::kShard, Axis::kWorld}) {
    all.push_back(mesh_->axis(axis).counters());
  }
  return all;
}

Engine::Traffic Engine::TrafficOf(const std::vector<CommCounters>& before,
                                  const std::vector<CommCounters>& prefilled,
                                  const std::vector<CommCounters>& after) {
  Traffic traffic;
  for (size_t i = 0; i < traffic.axes.size(); ++i) {
    traffic.axes[i] = {after[i].bytes_sent - before[i].bytes_sent,
                       prefilled[i].bytes_sent - before[i].bytes_sent,
                       after[i].calls - before[i].calls};
  }
  return traffic;
}

void Engine::FillReport(const MemoryUse& foreseen, const Traffic& traffic, RunReport& report) {
  struct Card {
    MemoryUse used, foreseen;
    int64_t kv_in_use, resident;
    Traffic traffic;
  } const own = {Used(), foreseen, cache_->peak_bytes_in_use(), PeakResidentBytes(), traffic};
  const std::vector<Card> cards = GatherHost(mesh_->world(), own);
  report.mesh = load_.mesh;
  MemoryReport& memory = report.memory;
  for (const Card& card : cards) {
    memory.peak.push_back(card.used.total());
    memory.predicted.push_back(card.foreseen.total());
    memory.weights.push_back(card.used.weights);
    memory.kv.push_back(card.kv_in_use);
    memory.scratch.push_back(card.used.scratch);
    memory.block_scratch.push_back(card.used.block_scratch);
    memory.resident.push_back(card.resident);
  }
  const std::array<int64_t, 5> sizes = {load_.mesh.data, load_.mesh.ring, load_.mesh.tensor,
                                        load_.mesh.data * load_.mesh.ring, load_.mesh.size()};
  for (int i = 0; i < 5; ++i) {
    if (sizes[i] == 1) continue;
    AxisReport axis{kAxisNames[i], {}, {}, {}};
    for (const Card& card : cards) {
      axis.bytes_sent.push_back(card.traffic.axes[i].sent);
      axis.prefill_bytes_sent.push_back(card.traffic.axes[i].prefill_sent);
      axis.calls.push_back(card.traffic.axes[i].calls);
    }
    report.comm.push_back(std::move(axis));
  }
}

absl::StatusOr<MemoryUse> Engine::ForeseeGenerate(const GenerateRequest& request) {
  return shadow_->DryGenerate(request, MostRows(request));
}

absl::StatusOr<MemoryUse> Engine::ForeseeScore(const ScoreRequest& request) {
  return shadow_->DryScore(request);
}

absl::StatusOr<RankMemory> Engine::Foresee(int rank, std::shared_ptr<const ModelSource> source,
                                           const LoadRequest& load,
                                           const GenerateRequest& request) {
  std::unique_ptr<Engine> engine(new Engine());
  engine->load_ = load;
  engine->source_ = std::move(source);
  const bool on_gpu = load.device == Device::kCuda;
  TOROID_RETURN_IF_ERROR(engine->Setup(
      NewCountingRank(rank, int(load.mesh.size()), on_gpu), /*layers=*/0,
      on_gpu ? NewCountingCudaBackend(load.compute == Compute::kBF16 ? DType::kBF16 : DType::kF32)
             : NewCountingBackend(TypeOf(load.compute)),
      {}));
  TOROID_ASSIGN_OR_RETURN(const MemoryUse use, engine->DryGenerate(request, MostRows(request)));
  RankMemory memory;
  memory.weights = use.weights;
  memory.kv = use.kv;
  memory.ring_buffers = engine->ring_bytes_;
  memory.activations = use.scratch - engine->ring_bytes_;
  memory.communicator = use.communicator;
  if (on_gpu) memory.device = CudaRankBytes();
  return memory;
}

}  // namespace toroid
