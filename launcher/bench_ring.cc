// Ring prefill: what each round computes, what its exchange adds, and the ring against one rank
// that has all its threads.
//
// The same work runs in pairs (bench_pairs.h). "copies skipped" runs the same schedule over a
// communicator that moves nothing (its results are not used): what a round takes longer than that
// is its exposed exchange.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/arena.h"
#include "core/io/model_source.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "launcher/bench_model.h"
#include "launcher/bench_pairs.h"
#include "parallel/counting_communicator.h"
#include "parallel/host_exchange.h"
#include "parallel/ring_attention.h"

namespace toroid {
namespace {

// SmolLM2-135M.
constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64;
constexpr double kUnseen = -std::numeric_limits<double>::infinity();

std::vector<double> Largest(Communicator& world, Stream s, std::vector<double> values) {
  Tensor x(DType::kF64, {int64_t(values.size())}, values.data());
  world.AllReduce(s, Partial(x), ReduceOp::kMax);
  return values;
}

// One rank's side of attention over a text of `tokens` tokens on a mesh: Q, K and V are functions
// of (position, head, dim), so every rank can make what any rank has.
class RingWork {
 public:
  // ops with `threads` threads; mesh: the real one, or one that only counts.
  RingWork(Mesh& mesh, int threads, const TokenLayout& layout)
      : ops_(NewCpuBackend(DType::kF32, threads)),
        s_(ops_->NewStream(false)),
        comm_s_(ops_->NewStream(true)),
        mesh_(mesh),
        layout_(layout),
        scratch_(*ops_, "benchmark"),
        positions_(layout.Positions(0, mesh.ring_rank())),
        t_(int64_t(positions_.size())),
        q_(t_ * kHeads * kHeadDim),
        kv_(2 * layout.max_count(0) * kKvHeads * kHeadDim),
        travelling_(kv_.size()),
        o_(q_.size()),
        lse_(t_ * kHeads),
        ring_(*ops_, s_, comm_s_, scratch_, mesh_, layout_,
              [this](int64_t, int64_t, int64_t) { begins_.push_back(BenchSeconds()); }) {
    for (int64_t h = 0; h < kHeads; ++h) kv_index_.push_back(int32_t(h * kKvHeads / kHeads));
    spec_.scale = 1 / std::sqrt(double(kHeadDim));
    for (int64_t i = 0; i < t_; ++i) {
      FillRandom(Seed(0, positions_[i]), kHeads * kHeadDim, q_.data() + i * kHeads * kHeadDim);
      for (int64_t part = 0; part < 2; ++part) {
        FillRandom(Seed(1 + part, positions_[i]), kRow, kv_.data() + (part * t_ + i) * kRow);
      }
    }
  }

  absl::Status Reserve() {
    return scratch_.Reserve(int64_t(kv_.size()) * 4 + 4 * layout_.max_count(0) + 4096);
  }

  // Seconds of the whole, after all ranks have met; rounds() are of this run.
  double Attend() {
    travelling_ = kv_;
    std::fill(o_.begin(), o_.end(), 0.0f);
    std::fill(lse_.begin(), lse_.end(), -std::numeric_limits<float>::infinity());
    begins_.clear();
    mesh_.world().Barrier(s_);
    const double begin = BenchSeconds();
    ring_.Attend(0, spec_, Tensor(DType::kF32, {t_, kHeads, kHeadDim}, q_.data()),
                 Tensor(DType::kI32, {t_}, positions_.data()),
                 Tensor(DType::kF32, {2 * t_, kKvHeads, kHeadDim}, travelling_.data()),
                 Tensor(DType::kI32, {kHeads}, kv_index_.data()),
                 Tensor(DType::kF32, {t_, kHeads, kHeadDim}, o_.data()),
                 Tensor(DType::kF32, {t_, kHeads}, lse_.data()));
    begins_.push_back(BenchSeconds());
    return begins_.back() - begin;
  }

  // Seconds of each round of the last run.
  std::vector<double> RoundSeconds() const {
    std::vector<double> seconds;
    for (size_t i = 0; i + 1 < begins_.size(); ++i) seconds.push_back(begins_[i + 1] - begins_[i]);
    return seconds;
  }

  // Some of this rank's outputs against a softmax in double over the whole text.
  absl::Status Verify(const std::string& name) const {
    std::vector<float> row(kRow);
    for (int64_t i = 0; i < std::min<int64_t>(t_, 8); ++i) {
      const int64_t q = i * (t_ - 1) / std::max<int64_t>(1, std::min<int64_t>(t_, 8) - 1);
      const int64_t h = i % kHeads, offset = kv_index_[h] * kHeadDim;
      const float* query = q_.data() + (q * kHeads + h) * kHeadDim;
      double sum = 0;
      std::vector<double> o(kHeadDim);
      for (int64_t position = 0; position <= positions_[q]; ++position) {
        FillRandom(Seed(1, position), kRow, row.data());
        double score = 0;
        for (int64_t d = 0; d < kHeadDim; ++d) score += double(query[d]) * row[offset + d];
        const double weight = std::exp(score * spec_.scale);
        sum += weight;
        FillRandom(Seed(2, position), kRow, row.data());
        for (int64_t d = 0; d < kHeadDim; ++d) o[d] += weight * row[offset + d];
      }
      for (int64_t d = 0; d < kHeadDim; ++d) {
        TOROID_RETURN_IF_ERROR(
            ExpectClose(name, o_[(q * kHeads + h) * kHeadDim + d], o[d] / sum, 1e-5));
      }
    }
    return absl::OkStatus();
  }

  const std::vector<Round>& Schedule() { return ring_.Schedule(spec_); }
  Stream s() const { return s_; }
  Stream comm_s() const { return comm_s_; }
  // This rank's own block, as it travels.
  Tensor Block(std::vector<float>& at) const {
    return Tensor(DType::kF32, {2 * t_ * kRow}, at.data());
  }
  // Seconds of one exchange with nothing beside it. REQUIRES equal blocks on all ranks.
  double Exchange() {
    Communicator& ring = mesh_.ring();
    const int to = (ring.rank() + 1) % ring.size();
    const int from = (ring.rank() + ring.size() - 1) % ring.size();
    std::vector<float> arriving(kv_.size());
    ring.Barrier(s_);
    const double begin = BenchSeconds();
    ring.SendRecv(s_, Block(kv_), to, Block(arriving), from);
    return BenchSeconds() - begin;
  }
  double block_bytes() const { return 8.0 * double(t_ * kRow); }

 private:
  static constexpr int64_t kRow = kKvHeads * kHeadDim;
  static uint64_t Seed(int64_t part, int64_t position) { return uint64_t(part << 40 | position); }

  const std::unique_ptr<Backend> ops_;
  const Stream s_, comm_s_;
  Mesh& mesh_;
  const TokenLayout& layout_;
  Arena scratch_;
  std::vector<int32_t> positions_, kv_index_;
  const int64_t t_;
  std::vector<float> q_, kv_, travelling_, o_, lse_;
  RingAttention ring_;
  AttentionSpec spec_;
  std::vector<double> begins_;
};

absl::Status AttentionPairs(BenchRun& run, std::unique_ptr<Communicator> own_world,
                            const LoadRequest& load, int64_t tokens) {
  const MeshShape shape{.ring = own_world->size()};
  const int ranks = own_world->size(), rank = own_world->rank();
  Mesh mesh(std::move(own_world), shape);
  Mesh counting(NewCountingWorld(rank, ranks), shape);
  Mesh alone(std::make_unique<SelfCommunicator>(), MeshShape{});
  Communicator& world = mesh.world();
  const TokenLayout layout(load.layout, {tokens}, 1, ranks), whole(load.layout, {tokens}, 1, 1);
  RingWork real(mesh, load.threads, layout), skipped(counting, load.threads, layout);
  TOROID_RETURN_IF_ERROR(ShareStatus(world, real.Reserve()));
  TOROID_RETURN_IF_ERROR(ShareStatus(world, skipped.Reserve()));
  std::unique_ptr<RingWork> one;
  if (rank == 0) {
    one = std::make_unique<RingWork>(alone, load.threads * ranks, whole);
    TOROID_RETURN_IF_ERROR(one->Reserve());
  }
  const std::string what = absl::StrCat("attention s", tokens, " ", ToString(load.layout));
  real.Attend();
  TOROID_RETURN_IF_ERROR(ShareStatus(world, real.Verify(what)));
  absl::Status verified;
  if (rank == 0) one->Attend(), verified = one->Verify(what + ", one rank");
  MeetQuietly(world, real.comm_s());
  TOROID_RETURN_IF_ERROR(ShareStatus(world, verified));

  double peak = run.fma_peak();  // all ranks at once
  world.AllReduce(real.s(), Partial(Tensor(DType::kF64, {1}, &peak)));
  std::vector<std::vector<double>> with(real.Schedule().size()), without(with.size());
  std::vector<double> skipped_seconds, exchange;
  BenchPairs pairs;
  TOROID_RETURN_IF_ERROR(RunPairs(
      run, what, world, real.comm_s(), [&]() -> absl::StatusOr<double> { return one->Attend(); },
      [&]() -> absl::StatusOr<double> {
        const double seconds = real.Attend();
        const std::vector<double> rounds = real.RoundSeconds();
        for (size_t i = 0; i < rounds.size(); ++i) with[i].push_back(rounds[i]);
        world.Barrier(real.s());
        skipped_seconds.push_back(skipped.Attend());
        const std::vector<double> bare = skipped.RoundSeconds();
        for (size_t i = 0; i < bare.size(); ++i) without[i].push_back(bare[i]);
        if (tokens % (2 * ranks) == 0) exchange.push_back(real.Exchange());
        return seconds;
      },
      pairs));

  // The slowest rank of each.
  std::vector<double> medians = {Median(pairs.all), Median(skipped_seconds),
                                 exchange.empty() ? kUnseen : Median(exchange), real.block_bytes()};
  for (size_t i = 0; i < with.size(); ++i) {
    std::vector<double> exposed;
    for (size_t j = 0; j < with[i].size(); ++j) exposed.push_back(with[i][j] - without[i][j]);
    medians.push_back(Median(without[i]));
    medians.push_back(Median(exposed));
    medians.push_back(double(real.Schedule()[i].pairs));
  }
  medians = Largest(world, real.s(), std::move(medians));
  TOROID_RETURN_IF_ERROR(mesh.Health());
  if (rank != 0) return absl::OkStatus();

  const double flops_of_pair = 4.0 * kHeads * kHeadDim;
  const double flops = flops_of_pair * double(tokens) * double(tokens + 1) / 2;
  const std::string ring_name = absl::StrCat(what, ", ring=", ranks);
  run.Add(FlopsRow(absl::StrCat(what, ", one rank, ", load.threads * ranks, " threads"), flops,
                   Median(pairs.one), peak));
  run.Add(FlopsRow(absl::StrCat(ring_name, " (bound: one rank)"), flops, medians[0],
                   run.rows().back().rate));
  run.Add(FlopsRow(absl::StrCat(ring_name, ", copies skipped"), flops, medians[1], peak));
  for (size_t i = 0; i < with.size(); ++i) {
    const double* round = medians.data() + 4 + 3 * i;
    const std::string name = absl::StrCat(ring_name, ", round ", i);
    run.Add(FlopsRow(name + " compute", flops_of_pair * round[2], round[0], peak / ranks));
    if (!real.Schedule()[i].moves) continue;
    run.Add(BytesRow(name + " exposed exchange", medians[3], std::max(0.0, round[1]), 0));
  }
  if (medians[2] != kUnseen) {
    run.Add(BytesRow(ring_name + ", exchange alone", medians[3], medians[2], 0));
  }
  return absl::OkStatus();
}

absl::Status ModelPairs(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                        int64_t tokens) {
  const int ranks = world->size(), rank = world->rank();
  run.Begin(absl::StrCat("load ", load.model));
  TOROID_ASSIGN_OR_RETURN(ModelSource opened, OpenModel(load.model, load.seed));
  const auto source = std::make_shared<const ModelSource>(std::move(opened));
  TOROID_ASSIGN_OR_RETURN(const auto ring, Engine::Create(std::move(world), source, load, nullptr));
  Communicator& all = ring->mesh().world();
  std::unique_ptr<Engine> one;
  absl::Status created;
  if (rank == 0) {
    LoadRequest alone = load;
    alone.mesh = MeshShape{};
    alone.threads = load.threads * ranks;
    auto engine = Engine::Create(std::make_unique<SelfCommunicator>(), source, alone, nullptr);
    created = engine.status();
    if (engine.ok()) one = *std::move(engine);
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(all, created));

  GenerateRequest request;
  request.prompt_ids = RandomIds(tokens, ring->config().vocab);
  request.max_tokens = 1;
  request.ignore_eos = true;
  request.prompt_logprobs = 0;
  const auto prefill = [&](Engine& engine, std::vector<double>* log_p) -> absl::StatusOr<double> {
    TOROID_ASSIGN_OR_RETURN(const GenerateResult result, engine.Generate(request, {}));
    if (log_p != nullptr) {
      for (const auto& entry : result.prompt_logprobs) log_p->push_back(entry.second);
    }
    return result.report.timing.prefill_s;
  };
  const std::string what = absl::StrCat("prefill ", tokens, " ", ToString(load.layout));
  request.prompt_logprobs = 16;  // the ring against one rank
  std::vector<double> expected, actual;
  Stream comm_s = ring->backend().NewStream(true);
  absl::Status status;
  if (rank == 0) status = prefill(*one, &expected).status();
  MeetQuietly(all, comm_s);
  TOROID_RETURN_IF_ERROR(ShareStatus(all, status));
  TOROID_RETURN_IF_ERROR(prefill(*ring, &actual).status());
  for (size_t i = 0; rank == 0 && status.ok() && i < actual.size(); ++i) {
    status = ExpectClose(what, actual[i], expected[i], 1e-3);
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(all, status));
  request.prompt_logprobs = 0;

  BenchPairs pairs;
  TOROID_RETURN_IF_ERROR(RunPairs(
      run, what, all, comm_s, [&] { return prefill(*one, nullptr); },
      [&] { return prefill(*ring, nullptr); }, pairs));
  double peak = run.fma_peak();
  all.AllReduce(ring->stream(), Partial(Tensor(DType::kF64, {1}, &peak)));
  if (rank != 0) return absl::OkStatus();
  const double bound = peak * 1e9 * double(tokens) / PrefillFlops(ring->config(), tokens);
  run.Add(TokensRow(absl::StrCat(what, ", one rank, ", load.threads * ranks, " threads"),
                    double(tokens), Median(pairs.one), bound));
  run.Add(TokensRow(absl::StrCat(what, ", ring=", ranks, " (bound: one rank)"), double(tokens),
                    Median(pairs.all), run.rows().back().rate));
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchRing(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                       int64_t tokens) {
  if (load.model.empty()) return AttentionPairs(run, std::move(world), load, tokens);
  return ModelPairs(run, std::move(world), load, tokens);
}

}  // namespace toroid
