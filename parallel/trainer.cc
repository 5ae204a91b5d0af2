#include "parallel/trainer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/cuda_memory.h"
#include "core/model/bind.h"
#include "core/model/loss.h"
#include "core/model/owed_sums.h"
#include "core/model/rope.h"
#include "core/status_macros.h"
#include "parallel/counting_communicator.h"
#include "parallel/device.h"
#include "parallel/host_exchange.h"
#include "parallel/progress_board.h"
#include "parallel/ring_attention.h"
#include "parallel/same_model.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

constexpr int64_t kUnbounded = int64_t{1} << 56;  // bytes: the counting backend's arenas

// By row of a vocabulary: whether none of the ids is its.
std::vector<bool> RowsWithout(const std::vector<int32_t>& ids, int64_t vocab) {
  std::vector<bool> rows(size_t(vocab), true);
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocab) rows[size_t(id)] = false;
  }
  return rows;
}

}  // namespace

// This rank's tokens of a micro-batch, in the layout's local order.
struct Trainer::Tokens {
  TokenLayout layout;
  std::vector<int32_t> ids, labels, positions;
  std::vector<int64_t> numbers;  // in the batch, the same on every mesh
};

// The same on the device, with what the pass over it needs.
struct Trainer::MicroBatchOf {
  MicroBatchOf(Trainer& trainer, int64_t step, const Tokens& tokens, double weight);

  Arena::Mark saved_mark, scratch_mark;
  int64_t t;
  RopeFrequencies rope;
  Tensor ids_t, labels_t, weights_t, positions_t, kv_index;
  RingAttention ring;
  Pass pass;
  Tensor x_uD, dx_uD, log_p_t, log_z_t;
  LossTargets targets;
  std::vector<Block::Saved> saved;
};

Trainer::MicroBatchOf::MicroBatchOf(Trainer& trainer, int64_t step, const Tokens& tokens,
                                    double weight)
    : saved_mark(*trainer.saved_),
      scratch_mark(*trainer.scratch_),
      t(int64_t(tokens.ids.size())),
      rope(Rope(trainer.config(), trainer.config().context)),
      ids_t(trainer.Upload("ids", DType::kI32, t, tokens.ids.data())),
      labels_t(trainer.Upload("labels", DType::kI32, t, tokens.labels.data())),
      weights_t(trainer.Upload("weights", DType::kF64, t, std::vector<double>(t, weight).data())),
      positions_t(trainer.Upload("positions", DType::kI32, t, tokens.positions.data())),
      kv_index(trainer.Upload("kv index", DType::kI32,
                              int64_t(trainer.layout_->heads().kv_index().size()),
                              trainer.layout_->heads().kv_index().data())),
      ring(
          *trainer.ops_, trainer.s_, trainer.comm_s_, *trainer.scratch_, *trainer.mesh_,
          tokens.layout,
          [&trainer](int64_t layer, int64_t round, int64_t) {
            if (trainer.board_ != nullptr) trainer.board_->At("ring", layer, round);
          },
          trainer.rounds_),
      pass(*trainer.ops_, trainer.s_, *trainer.scratch_, trainer.mesh_->tensor(),
           ResidualLayout(t, trainer.mesh_->tensor_rank(), trainer.options_.mesh.tensor,
                          /*always_split=*/true),
           positions_t,
           trainer.Upload("inverse frequencies", DType::kF64, int64_t(rope.inv_freq.size()),
                          rope.inv_freq.data())) {
  const DType type = trainer.ops_->dtype();
  pass.rope_scale = rope.attention_scale;
  pass.kv_dtype = trainer.options_.compute == Compute::kBF16 ? DType::kBF16 : type;
  pass.kv_capacity = tokens.layout.max_count(trainer.mesh_->data_rank());
  pass.activation = trainer.ops_->activation();
  pass.token_block =
      trainer.options_.token_block > 0 ? trainer.options_.token_block : trainer.ops_->token_block();
  pass.attend = [this](int64_t layer, const AttentionSpec& spec, Tensor q, Tensor kv, Tensor o,
                       Tensor lse) {
    ring.Attend(layer, spec, q, positions_t, kv, kv_index, o, lse);
  };
  pass.attend_backward = [this](int64_t layer, const AttentionSpec& spec, Tensor q, Tensor kv,
                                Tensor o, Tensor lse, Tensor d_o, Tensor dq, Tensor dkv) {
    ring.Backward(layer, spec, q, positions_t, kv, kv_index, o, lse, d_o, dq, dkv);
  };
  const int64_t u = pass.residual.share(), D = trainer.config().dim;
  x_uD = pass.Long("x", type, {u, D});
  dx_uD = pass.Long("dx", type, {u, D});
  log_p_t = pass.Long("log p", DType::kF64, {t});
  log_z_t = pass.Long("log Z", DType::kF64, {t});
  targets = {labels_t, weights_t, trainer.options_.zeta};
  if (trainer.options_.dropout > 0) {
    std::vector<int64_t> numbers(u, 0);  // of this rank's share of the residual; pads: 0
    std::copy_n(tokens.numbers.begin() + pass.residual.begin(), pass.residual.valid(),
                numbers.begin());
    pass.dropout = {trainer.options_.dropout, trainer.options_.dropout_seed,
                    trainer.Upload("step", DType::kI64, 1, &step),
                    trainer.Upload("numbers", DType::kI64, u, numbers.data())};
  }
}

Trainer::~Trainer() = default;

absl::Status Validate(const TrainOptions& options, const ModelConfig& model, int64_t ranks) {
  const auto rule = [](bool kept, absl::string_view name, double value, absl::string_view text) {
    return kept ? absl::OkStatus()
                : absl::InvalidArgumentError(absl::StrCat(name, ": ", value, ", must be ", text));
  };
  for (const int64_t axis : {options.mesh.data, options.mesh.ring, options.mesh.tensor}) {
    TOROID_RETURN_IF_ERROR(rule(axis >= 1, "ranks of a mesh axis", double(axis), "at least 1"));
  }
  TOROID_RETURN_IF_ERROR(ParseMesh(ToString(options.mesh), ranks, "data").status());
  TOROID_RETURN_IF_ERROR(CheckTensorAxis(model, options.mesh.tensor, "data"));
  TOROID_RETURN_IF_ERROR(rule(options.token_block >= 0, "token block", double(options.token_block),
                              "at least 1; 0: as fits the device"));
  TOROID_RETURN_IF_ERROR(rule(options.packs_per_rank >= 1, "sequences of a micro-batch",
                              double(options.packs_per_rank), "at least 1"));
  TOROID_RETURN_IF_ERROR(rule(options.threads >= 1, "threads", options.threads, "at least 1"));
  TOROID_RETURN_IF_ERROR(rule(options.zeta >= 0, "z-loss", options.zeta, "at least 0"));
  TOROID_RETURN_IF_ERROR(
      rule(options.max_norm >= 0, "clip of the norm", options.max_norm, "at least 0; 0: no clip"));
  TOROID_RETURN_IF_ERROR(rule(options.dropout >= 0 && options.dropout < 1, "dropout",
                              options.dropout, "at least 0 and below 1"));
  TOROID_RETURN_IF_ERROR(rule(options.noise_scale_every >= 0, "steps between noise scales",
                              double(options.noise_scale_every), "at least 0; 0: never"));
  TOROID_RETURN_IF_ERROR(rule(options.layers >= 0 && options.layers <= model.layers, "layers",
                              double(options.layers), "of the model; 0: all"));
  return Validate(options.optimizer);
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(std::unique_ptr<Communicator> world,
                                                         std::shared_ptr<const ModelSource> source,
                                                         const TrainOptions& options,
                                                         ProgressBoard* board, RoundsRule rounds,
                                                         const PodAccess& pods) {
  std::unique_ptr<Trainer> trainer(new Trainer());
  trainer->options_ = options;
  trainer->rounds_ = std::move(rounds);
  trainer->source_ = std::move(source);
  trainer->board_ = board;
  TOROID_RETURN_IF_ERROR(trainer->Setup(std::move(world), /*counting=*/nullptr, pods));
  return trainer;
}

absl::Status Trainer::Setup(std::unique_ptr<Communicator> world,
                            std::unique_ptr<Backend> counting_ops, const PodAccess& pods) {
  const bool counting = counting_ops != nullptr;
  const ModelConfig& model = config();
  TOROID_RETURN_IF_ERROR(Validate(options_, model, world->size()));
  if (counting) {
    ops_ = std::move(counting_ops);
  } else {
    TOROID_ASSIGN_OR_RETURN(
        RankDevice device,
        NewRankDevice(std::move(world),
                      {options_.device, options_.compute, options_.share_gpus, options_.threads,
                       /*measures=*/!options_.deterministic},
                      board_ != nullptr ? board_->ticks() : nullptr));
    ops_ = std::move(device.ops);
    world = std::move(device.world);
  }
  s_ = ops_->NewStream(/*communication=*/false);
  comm_s_ = ops_->NewStream(/*communication=*/true);
  mesh_ = std::make_unique<Mesh>(std::move(world), options_.mesh);
  layers_ = options_.layers > 0 ? options_.layers : model.layers;
  layout_ = std::make_unique<ParamLayout>(model, mesh_->tensor_rank(), options_.mesh.tensor);
  saved_ = std::make_unique<Arena>(*ops_, "saved");
  scratch_ = std::make_unique<Arena>(*ops_, "scratch");
  ParamStore::Options stored;
  stored.prefetch = options_.prefetch;
  stored.narrow = options_.compute == Compute::kBF16;
  ParamGroups groups(model, *layout_, mesh_->tensor_rank(), mesh_->shard().size(), layers_);
  for (int64_t g = 0; g < groups.count(); ++g) {
    specs_.emplace_back();
    for (const GroupMember& member : groups.group(g).members) specs_[g].push_back(member.spec);
  }
  auto store = ParamStore::Create(*ops_, s_, *mesh_, std::move(groups), stored);
  if (counting) {
    TOROID_RETURN_IF_ERROR(store.status());
    store_ = std::move(*store);
    TOROID_RETURN_IF_ERROR(saved_->Reserve(kUnbounded));
    return scratch_->Reserve(kUnbounded);
  }
  TOROID_RETURN_IF_ERROR(CheckSameModel(mesh_->world(), *source_, /*whole=*/false));
  TOROID_RETURN_IF_ERROR(ShareStatus(mesh_->world(), store.status()));
  store_ = std::move(*store);
  At("load", -1);
  TOROID_RETURN_IF_ERROR(ShareStatus(
      mesh_->world(), store_->Load(*source_, board_ != nullptr ? board_->ticks() : nullptr)));
  auto optimizer = Optimizer::Create(*ops_, s_, *store_, options_.optimizer);
  TOROID_RETURN_IF_ERROR(ShareStatus(mesh_->world(), optimizer.status()));
  optimizer_ = std::move(*optimizer);
  shadow_.reset(new Trainer());
  shadow_->options_ = options_;
  shadow_->rounds_ = rounds_;
  shadow_->source_ = source_;
  TOROID_RETURN_IF_ERROR(
      shadow_->Setup(NewCountingTwin(mesh_->world(), s_), NewCountingBackend(*ops_), {}));
  return options_.pods.count > 1 && !pods.joins ? MeetPods(pods) : absl::OkStatus();
}

absl::Status Trainer::MeetPods(const PodAccess& access) {
  if (access.link == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("a run of ", options_.pods.count, " pods needs a link between them"));
  }
  At("meet pods", -1);
  PodExchange::Options pods;
  pods.pods = options_.pods.count;
  const bool goes_on = options_.pods.policy == PodsOptions::Policy::kContinue;
  pods.swap = {options_.pods.exchange, options_.dropout_seed, options_.threads, goes_on,
               access.joins};
  pods.watch = {board_,      access.interrupted, access.note,
                access.view, access.on_silent,   access.on_slow};
  if (access.view && !goes_on) {  // the number that this world begins with stays
    pods.watch.view = [begun = access.view()] { return begun; };
  }
  TOROID_ASSIGN_OR_RETURN(exchange_,
                          PodExchange::Create(*access.link, pods, config(), layers_, *store_));
  optimizer_->TakeSquaresFrom([this] { return SquaredSums(Kind::kWeights); });
  return absl::OkStatus();
}

void Trainer::At(const char* op, int64_t layer) const {
  if (board_ != nullptr) board_->At(op, layer);
}

Tensor Trainer::Upload(const char* name, DType type, int64_t size, const void* host) {
  Tensor tensor = scratch_->New(name, type, {size}, Arena::Length::kTokens);
  ops_->Upload(s_, host, tensor);
  return tensor;
}

void Trainer::Restore(int64_t updates, const GradientNoiseScale& noise) {
  updates_ = updates;
  noise_ = noise;
  store_->Forget();
}

RankMemory Trainer::memory() {
  RankMemory memory;
  memory.weights = store_->state_bytes() + store_->gathered_bytes();
  memory.optimizer =
      2 * store_->state_bytes() + Optimizer::ConstantBytes(*store_, options_.optimizer);
  memory.gradients = store_->state_bytes() + store_->buffer_bytes() - store_->gathered_bytes();
  memory.ring_buffers = ring_bytes_;
  memory.activations = saved_->peak() + scratch_->peak() - ring_bytes_;
  for (Axis axis : {Axis::kData, Axis::kRing, Axis::kTensor, Axis::kShard, Axis::kWorld}) {
    memory.communicator += mesh_->axis(axis).communicator_bytes();
  }
  const PodsOptions& pods = options_.pods;
  if (pods.count > 1) {
    const bool on_host = options_.device != Device::kCuda;  // else not of the memory told of here
    memory.exchange = PodExchange::HostBytes(
        *store_, pods.exchange, pods.count, pods.policy == PodsOptions::Policy::kContinue, on_host);
    if (on_host) memory.communicator += memory.exchange.total();
  }
  return memory;
}

absl::StatusOr<RankMemory> Trainer::Foresee(int rank, std::shared_ptr<const ModelSource> source,
                                            const TrainOptions& options,
                                            const std::vector<std::vector<int64_t>>& packs) {
  std::unique_ptr<Trainer> trainer(new Trainer());
  trainer->options_ = options;
  trainer->options_.optimizer = OptimizerSpec();  // no recipe needs more than another
  trainer->options_.optimizer.rate.peak = 1;
  trainer->rounds_ = Rounds;
  trainer->source_ = std::move(source);
  Trainer& t = *trainer;
  const bool on_gpu = options.device == Device::kCuda;
  const DType type = options.compute == Compute::kF64 ? DType::kF64 : DType::kF32;
  TOROID_RETURN_IF_ERROR(t.Setup(
      NewCountingRank(rank, int(options.mesh.size()), on_gpu),
      on_gpu
          ? NewCountingCudaBackend(options.compute == Compute::kBF16 ? DType::kBF16 : DType::kF32)
          : NewCountingBackend(type),
      {}));
  constexpr int64_t kStep = 1;  // one that does not measure the noise scale
  const int64_t pods = options.pods.count;
  const int64_t own = (int64_t(packs.size()) + pods - 1) / pods;  // of the pod that has most
  for (const Range& range : t.MicroBatchesOf(kStep, own)) {
    Tokens tokens{TokenLayout::Packed(options.layout,
                                      {packs.begin() + range.begin, packs.begin() + range.end},
                                      options.mesh.data, options.mesh.ring)};
    tokens.positions = tokens.layout.Positions(t.mesh_->data_rank(), t.mesh_->ring_rank());
    tokens.ids.assign(tokens.positions.size(), 0);
    tokens.labels = tokens.ids;
    tokens.numbers.assign(tokens.positions.size(), 0);
    t.Accumulate(kStep, tokens, 1, /*last=*/true);
  }
  t.store_->FinishReductions();
  t.store_->SquaredSums(Kind::kGradients);
  std::vector<double> loss = {0};
  SumHost(t.mesh_->shard(), loss);
  RankMemory memory = t.memory();
  if (on_gpu) memory.device = CudaRankBytes();
  return memory;
}

std::optional<double> Trainer::exposed_seconds() const {
  double seconds = 0;
  for (const Stream& s : {s_, comm_s_, store_->traffic()}) {
    if (s.cpu == nullptr) return std::nullopt;
    seconds += s.cpu->waited_seconds();
  }
  return seconds;
}

// --- one micro-batch -----------------------------------------------------------------------------

// x = Embed(ids); every layer saves what Backward reads.
void Trainer::Forward(MicroBatchOf& micro) {
  const ParamGroups& groups = store_->groups();
  At("embed", -1);
  BindEnds(config(), *layout_, store_->Gather(groups.embedding(), groups.layer(0)))
      .Embed(micro.pass, micro.ids_t, micro.x_uD);
  for (int64_t layer = 0; layer < layers_; ++layer) {
    At("forward", layer);
    const int64_t next = layer + 1 < layers_ ? groups.layer(layer + 1) : groups.head();
    const Block block =
        BindBlock(config(), *layout_, layer, store_->Gather(groups.layer(layer), next));
    micro.saved.push_back(block.NewSaved(micro.pass, options_.remat, *saved_));
    block.Forward(micro.pass, layer, micro.x_uD, &micro.saved.back());
  }
}

// The loss, which makes dx, and the layers in reverse; each group's gradients leave as it is done.
// To rows of the embedding that none of the tokens is of, nothing comes behind the head's.
void Trainer::Backward(MicroBatchOf& micro, const Tokens& tokens, bool last) {
  const ParamGroups& groups = store_->groups();
  At("loss", -1);
  const ModelEnds ends =
      BindEnds(config(), *layout_, store_->Gather(groups.head(), groups.layer(layers_ - 1)));
  FindParam gradients = store_->Gradients(groups.head());
  CrossEntropy(micro.pass, ends, micro.targets, micro.x_uD, micro.log_p_t, micro.log_z_t,
               micro.dx_uD, BindEnds(config(), *layout_, gradients));
  Reduce(groups.head(), gradients, last && groups.head() != groups.embedding());
  if (last) {
    store_->RowsWhole(groups.embedding(), kEmbeddingTable, RowsWithout(tokens.ids, config().vocab));
  }
  for (int64_t layer = layers_ - 1; layer >= 0; --layer) {
    At("backward", layer);
    const int64_t next = layer > 0 ? groups.layer(layer - 1) : -1;
    const Block block =
        BindBlock(config(), *layout_, layer, store_->Gather(groups.layer(layer), next));
    gradients = store_->Gradients(groups.layer(layer));
    block.Backward(micro.pass, layer, micro.saved[layer], micro.dx_uD,
                   BindBlock(config(), *layout_, layer, gradients));
    Reduce(groups.layer(layer), gradients, last);
  }
  At("embed backward", -1);
  gradients = store_->Gradients(groups.embedding());
  BindEnds(config(), *layout_, gradients)
      .EmbedBackward(micro.pass, micro.ids_t, micro.dx_uD, BindEnds(config(), *layout_, gradients));
  Reduce(groups.embedding(), gradients, last);
}

void Trainer::Reduce(int64_t group, const FindParam& gradients, bool whole) {
  SumOwedOverTensor(*ops_, s_, *scratch_, mesh_->tensor(), config(), specs_[group], gradients);
  store_->Reduce(whole);
}

double Trainer::Accumulate(int64_t step, const Tokens& tokens, double weight, bool last) {
  MicroBatchOf micro(*this, step, tokens, weight);
  Forward(micro);
  Backward(micro, tokens, last);
  ring_bytes_ = std::max(ring_bytes_, micro.ring.buffer_bytes());
  std::vector<double> log_p(micro.t), log_z(micro.t);
  ops_->Download(s_, micro.log_p_t, log_p.data());
  ops_->Download(s_, micro.log_z_t, log_z.data());
  double loss = 0;
  for (int64_t i = 0; i < micro.t; ++i) {
    if (tokens.labels[i] >= 0) loss += weight * (-log_p[i] + options_.zeta * log_z[i] * log_z[i]);
  }
  return loss;
}

// --- one step ------------------------------------------------------------------------------------

// The packs of each micro-batch.
std::vector<Range> Trainer::MicroBatchesOf(int64_t step, int64_t packs) const {
  if (packs == 0) return {};  // a batch of fewer packs than pods
  const int64_t data = options_.mesh.data, each = options_.packs_per_rank;
  const int64_t every = options_.noise_scale_every, count = MicroBatches(packs, data, each);
  const bool measured = every > 0 && step % every == 0;
  if (measured && count == 1 && packs > 1) return {{0, packs / 2}, {packs / 2, packs}};
  std::vector<Range> ranges;
  for (int64_t m = 0; m < count; ++m) ranges.push_back(MicroBatch(packs, data, each, m));
  return ranges;
}

// This rank's tokens of every micro-batch, and how many tokens of each have a label, on all ranks
// of the pod.
absl::StatusOr<std::vector<Trainer::Tokens>> Trainer::ReadBatch(int64_t step,
                                                                const TrainBatch& batch,
                                                                std::vector<double>& labels) {
  const int64_t data = options_.mesh.data;
  int64_t longest = 0;  // tokens of a pack: numbers of tokens are dealt so many to each
  std::vector<std::vector<int64_t>> own;  // this pod's packs, and
  std::vector<int64_t> numbers;           // their numbers in the batch
  const int64_t pods = options_.pods.count, pod = exchange_ != nullptr ? exchange_->pod() : 0;
  for (const std::vector<int64_t>& pack : batch.documents) {
    longest = std::max(longest, std::accumulate(pack.begin(), pack.end(), int64_t{0}));
    const int64_t number = &pack - batch.documents.data();
    if (number % pods != pod) continue;
    own.push_back(pack);
    numbers.push_back(number);
  }
  std::vector<Tokens> all;
  absl::Status status;
  for (const Range& range : MicroBatchesOf(step, int64_t(own.size()))) {
    const std::vector<std::vector<int64_t>> documents(own.begin() + range.begin,
                                                      own.begin() + range.end);
    Tokens tokens{TokenLayout::Packed(options_.layout, documents, data, options_.mesh.ring)};
    int64_t read = -1;  // pack in hand
    Pack pack;
    for (const Run& run : tokens.layout.runs(mesh_->data_rank(), mesh_->ring_rank())) {
      const SequencePlace& place = tokens.layout.place(run.sequence);
      if (place.pack != read && status.ok()) {
        auto got = batch.read(numbers[range.begin + place.pack]);
        status = got.status();
        if (status.ok()) pack = std::move(*got);
        read = place.pack;
      }
      if (!status.ok()) break;
      const auto from = [&](const std::vector<int32_t>& of_pack, std::vector<int32_t>& to) {
        const auto begin = of_pack.begin() + place.begin + run.first;
        to.insert(to.end(), begin, begin + run.count);
      };
      from(pack.ids, tokens.ids);
      from(pack.labels, tokens.labels);
      const int64_t first = numbers[range.begin + place.pack] * longest + place.begin + run.first;
      for (int64_t i = 0; i < run.count; ++i) tokens.numbers.push_back(first + i);
    }
    tokens.positions = tokens.layout.Positions(mesh_->data_rank(), mesh_->ring_rank());
    labels.push_back(0);
    for (int32_t label : tokens.labels) labels.back() += label >= 0;
    all.push_back(std::move(tokens));
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(mesh_->world(), status));
  if (!labels.empty()) SumHost(mesh_->shard(), labels);
  return all;
}

// Room for every micro-batch, by running it on the counting backend. Shares of equal length need
// equal room.
absl::Status Trainer::Reserve(const std::vector<Tokens>& batch) {
  absl::Status status;
  int64_t saved = 0, scratch = 0;
  for (const Tokens& tokens : batch) {
    const std::pair<int64_t, int64_t> lengths = {int64_t(tokens.ids.size()),
                                                 tokens.layout.max_count(mesh_->data_rank())};
    if (!foreseen_.insert(lengths).second) continue;
    shadow_->saved_->ResetPeak();
    shadow_->scratch_->ResetPeak();
    shadow_->Accumulate(0, tokens, 1, /*last=*/true);
    saved = std::max(saved, shadow_->saved_->peak());
    scratch = std::max(scratch, shadow_->scratch_->peak());
  }
  if (saved > saved_->capacity()) status = saved_->Reserve(saved);
  if (status.ok() && scratch > scratch_->capacity()) status = scratch_->Reserve(scratch);
  return ShareStatus(mesh_->world(), status);
}

absl::StatusOr<double> Trainer::Gradient(int64_t step, const TrainBatch& batch) {
  StepResult result;
  result.step = step;
  TOROID_RETURN_IF_ERROR(GradientOf(batch, result).status());
  if (result.labels > 0) return result.loss;
  return absl::InvalidArgumentError(
      "no token of the batch has a successor to predict: give documents of two tokens or more");
}

absl::StatusOr<bool> Trainer::GradientOf(const TrainBatch& batch, StepResult& result) {
  std::vector<double> labels;  // of each micro-batch
  TOROID_ASSIGN_OR_RETURN(const std::vector<Tokens> tokens, ReadBatch(result.step, batch, labels));
  result.labels = int64_t(std::accumulate(labels.begin(), labels.end(), 0.0));
  part_.reset();
  if (exchange_ != nullptr) exchange_->Begin(result.step, result.labels);
  if (result.labels > 0) TOROID_RETURN_IF_ERROR(OwnGradient(tokens, labels, result));
  TOROID_RETURN_IF_ERROR(mesh_->Health());
  if (exchange_ == nullptr) return result.labels > 0;
  At("exchange", -1);
  TOROID_ASSIGN_OR_RETURN(const PodExchange::Applied applied, exchange_->Finish(result.loss));
  result.loss = applied.loss;
  result.labels = applied.labels;
  if (part_) part_->all_labels = double(applied.labels);
  return applied.update;
}

absl::Status Trainer::OwnGradient(const std::vector<Tokens>& tokens,
                                  const std::vector<double>& labels, StepResult& result) {
  const int64_t step = result.step, every = options_.noise_scale_every;
  const double all = double(result.labels);
  TOROID_RETURN_IF_ERROR(Reserve(tokens));
  const bool measured = every > 0 && step % every == 0 && labels[0] > 0 && labels[0] < all;
  store_->ZeroGradients();
  std::vector<double> loss = {0};
  for (const Tokens& micro : tokens) {
    loss[0] += Accumulate(step, micro, 1 / all, /*last=*/&micro == &tokens.back());
    if (!measured || part_) continue;
    store_->FinishReductions();  // what is stored is the first part's sum over `all`
    const std::vector<double> squares = store_->SquaredSums(Kind::kGradients);
    const double mean = all / labels[0];
    part_ = {labels[0], all, mean * mean * std::accumulate(squares.begin(), squares.end(), 0.0)};
  }
  store_->FinishReductions();
  SumHost(mesh_->shard(), loss);
  result.loss = loss[0];
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Trainer::Step(int64_t step, const TrainBatch& batch) {
  StepResult result;
  result.step = step;
  result.rate = LearningRate(options_.optimizer.rate, step);
  for (const std::vector<int64_t>& pack : batch.documents) {
    for (int64_t length : pack) result.tokens += length;
  }
  TOROID_ASSIGN_OR_RETURN(const bool update, GradientOf(batch, result));
  if (update) TOROID_RETURN_IF_ERROR(Update(result));
  if (exchange_ != nullptr) TOROID_RETURN_IF_ERROR(exchange_->After(step + 1));
  return result;
}

std::vector<double> Trainer::SquaredSums(Kind kind) {
  return exchange_ != nullptr ? exchange_->SquaredSums(kind) : store_->SquaredSums(kind);
}

absl::Status Trainer::Update(StepResult& result) {
  At("norm", -1);
  const std::vector<double> squares = SquaredSums(Kind::kGradients);
  if (exchange_ != nullptr) TOROID_RETURN_IF_ERROR(exchange_->status());
  At("update", -1);
  const Optimizer::Clipped made =
      optimizer_->ClipAndUpdate(result.step, squares, options_.max_norm, updates_);
  result.skipped = made.skipped;
  if (part_) noise_.Add(part_->labels, part_->squared, part_->all_labels, made.squared_sum);
  result.noise_scale = noise_.value();
  result.grad_norm = made.clip.norm;
  if (exchange_ != nullptr) TOROID_RETURN_IF_ERROR(exchange_->status());
  return mesh_->Health();
}

}  // namespace toroid
