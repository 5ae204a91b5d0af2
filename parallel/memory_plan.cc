#include "parallel/memory_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/model/params.h"
#include "core/status_macros.h"
#include "parallel/checkpoint.h"
#include "parallel/engine.h"
#include "parallel/pod_exchange.h"

namespace toroid {
namespace {

constexpr int64_t kMostRanks = 1 << 16;
constexpr int64_t kMostGrowth = 1 << 10;  // of a mesh, in advice
constexpr int64_t kContextUnit = 64;      // of shorter contexts, in advice

using Source = std::shared_ptr<const ModelSource>;
using Signature = std::vector<int64_t>;  // ranks of equal ones need the same

std::string Bytes(int64_t bytes) { return absl::StrFormat("%.2f GiB", double(bytes) / (1 << 30)); }

// Sizes of all that a tensor rank stores, for each tensor rank.
std::vector<Signature> TensorSignatures(const ModelConfig& config, int64_t tensor) {
  const std::vector<ParamSpec> table = ParamTable(config);
  std::vector<Signature> signatures;
  for (int64_t rank = 0; rank < tensor; ++rank) {
    const ParamLayout layout(config, rank, tensor);
    Signature& own = signatures.emplace_back();
    for (const ParamSpec& spec : table) {
      if (spec.layer > 0) continue;  // as layer 0
      const ParamSlice slice = layout.Slice(spec);
      own.insert(own.end(), {slice.row_count, slice.col_count});
    }
    own.push_back(layout.heads().kv_count());
  }
  return signatures;
}

absl::Status CheckMesh(const ModelConfig& config, const MeshShape& mesh) {
  for (const int64_t axis : {mesh.data, mesh.ring, mesh.tensor}) {
    if (axis < 1 || axis > kMostRanks || mesh.size() > kMostRanks) {
      return absl::InvalidArgumentError(
          absl::StrCat("mesh ", ToString(mesh), ": plan takes 1 to ", kMostRanks, " ranks"));
    }
  }
  return CheckTensorAxis(config, mesh.tensor, "data");
}

absl::Status CheckDevice(Device device, Compute compute) {
  if (device != Device::kCuda || compute != Compute::kF64) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--device cuda with --compute f64: use --device cpu, or --compute f32 or bf16");
}

// Bytes of each rank's copy for checkpoints: ranks that store as much count more or less of it,
// as replicas and pads lie in their ranges. Layers are alike.
std::vector<int64_t> CheckpointCopies(const ModelConfig& config, const TrainOptions& options) {
  const MeshShape& mesh = options.mesh;
  const int64_t shard = mesh.data * mesh.ring;
  const int64_t layers = options.layers > 0 ? options.layers : config.layers;
  const DType type = options.compute == Compute::kF64 ? DType::kF64 : DType::kF32;
  int64_t kinds = CheckpointManifest::kKinds;
  if (options.pods.count > 1) {
    kinds += int64_t(PodExchange::StateNames(options.pods.exchange).size());
  }
  std::vector<int64_t> copies(size_t(mesh.size()));
  for (int64_t t = 0; t < mesh.tensor; ++t) {
    const ParamLayout layout(config, t, mesh.tensor);
    const ParamGroups ends(config, layout, t, shard, /*layers=*/0);
    const ParamGroups first(config, layout, t, shard, /*layers=*/1);
    for (int64_t i = 0; i < shard; ++i) {
      const int64_t around = CheckpointCopyBytes(ends, i, type, kinds);
      copies[size_t(i * mesh.tensor + t)] =
          around + layers * (CheckpointCopyBytes(first, i, type, kinds) - around);
    }
  }
  return copies;
}

// `own(data, ring)`: what tells ranks of different tokens apart; `foresee(rank)`: their bytes, but
// for copies[rank].
template <typename Own, typename Foresee>
absl::StatusOr<MemoryPlan> Plan(const ModelConfig& config, const MeshShape& mesh,
                                const std::vector<int64_t>& copies, Own own, Foresee foresee) {
  const std::vector<Signature> tensor = TensorSignatures(config, mesh.tensor);
  MemoryPlan plan{mesh, {}};
  std::map<Signature, RankMemory> known;
  std::map<Signature, size_t> groups;
  for (int rank = 0; rank < int(mesh.size()); ++rank) {
    const int64_t t = rank % mesh.tensor, ring = rank / mesh.tensor % mesh.ring;
    Signature signature = own(rank / (mesh.tensor * mesh.ring), ring);
    signature.push_back(rank == 0);
    signature.insert(signature.end(), tensor[t].begin(), tensor[t].end());
    auto same = known.find(signature);
    if (same == known.end()) {
      TOROID_ASSIGN_OR_RETURN(const RankMemory memory, foresee(rank));
      same = known.emplace(signature, memory).first;
    }
    RankMemory memory = same->second;
    memory.checkpoint_copy = copies[size_t(rank)];
    signature.push_back(memory.checkpoint_copy);
    const auto [group, fresh] = groups.emplace(std::move(signature), plan.groups.size());
    if (fresh) plan.groups.push_back({memory, {}});
    plan.groups[group->second].ranks.push_back(rank);
  }
  return plan;
}

// Packs that make the step's largest micro-batch, and its last one, which may be smaller.
absl::StatusOr<std::vector<std::vector<int64_t>>> Packs(const PlannedTraining& job) {
  const TrainOptions& options = job.options;
  if (job.sequence_length < 1 || job.batch_tokens < job.sequence_length) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch of ", job.batch_tokens, " tokens in sequences of ", job.sequence_length,
        ": give a sequence length of at least 1 and a batch of at least one sequence"));
  }
  if (job.sequence_length >= int64_t{1} << 31) {
    return absl::InvalidArgumentError("the sequence length must be below 2^31");
  }
  const int64_t packs = job.batch_tokens / job.sequence_length;
  const int64_t micro = options.mesh.data * std::max<int64_t>(1, options.packs_per_rank);
  const int64_t kept = packs <= micro ? packs : micro + packs % micro;
  return std::vector<std::vector<int64_t>>(size_t(kept), {job.sequence_length});
}

PlannedInference WithContext(const Source& source, PlannedInference job) {
  if (job.load.context == 0) job.load.context = source->config.context;
  job.max_tokens = std::max<int64_t>(0, std::min(job.max_tokens, job.load.context - 1));
  return job;
}

// Meshes of `growth` times the ranks, the axis that changes least of the run first.
std::vector<MeshShape> Larger(const MeshShape& mesh, int64_t growth, bool training) {
  std::vector<MeshShape> meshes;
  MeshShape ring = mesh, data = mesh, tensor = mesh;
  ring.ring *= growth;
  data.data *= growth;
  tensor.tensor *= growth;
  if (training) return {data, ring, tensor};
  return {ring, tensor};
}

// The most bytes of a rank, if the job fits; nothing if it does not, or is none.
template <typename Job>
std::optional<int64_t> Fit(const Source& source, const Job& job, int64_t limit) {
  const absl::StatusOr<MemoryPlan> plan = PlanMemory(source, job);
  if (!plan.ok() || plan->most() > limit) return std::nullopt;
  return plan->most();
}

// The greatest of 1 .. most that fits, 0 if none does. What is smaller needs no more, so that the
// middle of what is not known yet halves it.
template <typename Fits>
int64_t Greatest(int64_t most, Fits fits) {
  if (most < 1 || !fits(1)) return 0;
  int64_t fit = 1, unfit = most + 1;
  while (unfit - fit > 1) {
    const int64_t middle = fit + (unfit - fit) / 2;
    (fits(middle) ? fit : unfit) = middle;
  }
  return fit;
}

// A changed job that fits, and how a user changes it.
template <typename Job>
struct Change {
  std::string text;
  Job job;
};

template <typename Job>
std::string Line(const Source& source, const Change<Job>& change) {
  return absl::StrCat(change.text, ": ", Bytes(PlanMemory(source, change.job)->most()),
                      " on a rank at most");
}

struct RematName {
  Remat remat;
  const char *flag, *field;
};
constexpr RematName kRemats[] = {
    {Remat::kNone, "--remat none", "--set train.remat=NONE"},
    {Remat::kAttentionOutput, "--remat attention_output", "--set train.remat=ATTENTION_OUTPUT"},
    {Remat::kBlock, "--remat block", "--set train.remat=BLOCK"}};

// Training with less kept and more computed again: as little of it as fits, the fewest changes of
// remat first. Nothing if that is not enough.
std::optional<Change<PlannedTraining>> Slower(const Source& source, const PlannedTraining& job,
                                              int64_t limit) {
  const auto changed = [&](Remat remat, int64_t packs) {
    PlannedTraining slower = job;
    slower.options.remat = remat;
    slower.options.packs_per_rank = packs;
    return slower;
  };
  if (!Fit(source, changed(Remat::kBlock, 1), limit)) return std::nullopt;
  const int64_t given = job.options.packs_per_rank;
  for (const RematName& name : kRemats) {
    const bool same = name.remat == job.options.remat;
    if (int(name.remat) < int(job.options.remat)) continue;
    const int64_t packs = Greatest(same ? given - 1 : given, [&](int64_t n) {
      return Fit(source, changed(name.remat, n), limit).has_value();
    });
    if (packs == 0) continue;
    std::vector<std::string> options;
    if (packs != given) {
      options.push_back(
          absl::StrCat(job.of_spec ? "--set train.packs_per_rank=" : "--packs-per-rank ", packs));
    }
    if (!same) options.push_back(job.of_spec ? name.field : name.flag);
    return Change<PlannedTraining>{absl::StrJoin(options, " "), changed(name.remat, packs)};
  }
  return std::nullopt;
}

// The mesh of the fewest ranks that fits, as the job is or else made slower.
std::optional<Change<PlannedTraining>> OnMoreRanks(const Source& source, const PlannedTraining& job,
                                                   int64_t limit) {
  for (int64_t growth = 2; growth <= kMostGrowth; growth *= 2) {
    for (const bool slow : {false, true}) {
      for (const MeshShape& mesh : Larger(job.options.mesh, growth, /*training=*/true)) {
        Change<PlannedTraining> change{absl::StrCat("--mesh ", ToString(mesh)), job};
        change.job.options.mesh = mesh;
        if (!slow && Fit(source, change.job, limit)) return change;
        if (!slow) continue;
        const auto slower = Slower(source, change.job, limit);
        if (slower) return Change<PlannedTraining>{change.text + " " + slower->text, slower->job};
      }
    }
  }
  return std::nullopt;
}

// The longest sequences that fit and of which the batch has a whole number.
std::optional<Change<PlannedTraining>> Shorter(const Source& source, const PlannedTraining& job,
                                               int64_t limit) {
  const int64_t batch = std::gcd(job.batch_tokens, job.batch_unit);
  std::set<int64_t> lengths;
  for (int64_t d = 1; d <= batch / d; ++d) {
    if (batch % d == 0) lengths.insert({d, batch / d});
  }
  lengths.erase(lengths.lower_bound(job.sequence_length), lengths.end());
  const std::vector<int64_t> ascending(lengths.begin(), lengths.end());
  const auto of = [&](int64_t i) {
    PlannedTraining changed = job;
    changed.sequence_length = ascending[size_t(i - 1)];
    return changed;
  };
  const int64_t i = Greatest(int64_t(ascending.size()),
                             [&](int64_t n) { return Fit(source, of(n), limit).has_value(); });
  if (i == 0) return std::nullopt;
  return Change<PlannedTraining>{
      absl::StrCat(job.of_spec ? "--set train.data.sequence_length=" : "--sequence-length ",
                   of(i).sequence_length),
      of(i)};
}

}  // namespace

int64_t MemoryPlan::most() const {
  int64_t most = 0;
  for (const Group& group : groups) most = std::max(most, group.memory.total());
  return most;
}

absl::Status CheckPositions(const ModelConfig& model, int64_t sequence_length) {
  if (model.positions != PositionKind::kLearned || sequence_length <= model.context) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("sequence length: ", sequence_length,
                                                 ", but the model has learned ", model.context,
                                                 " positions"));
}

absl::StatusOr<MemoryPlan> PlanMemory(Source source, const PlannedTraining& job) {
  const TrainOptions& options = job.options;
  TOROID_RETURN_IF_ERROR(CheckMesh(source->config, options.mesh));
  TOROID_RETURN_IF_ERROR(CheckDevice(options.device, options.compute));
  TOROID_RETURN_IF_ERROR(CheckPositions(source->config, job.sequence_length));
  TOROID_ASSIGN_OR_RETURN(const auto packs, Packs(job));
  std::vector<TokenLayout> layouts;  // of both micro-batches
  for (int64_t m = 0;
       m < MicroBatches(int64_t(packs.size()), options.mesh.data, options.packs_per_rank); ++m) {
    const Range range =
        MicroBatch(int64_t(packs.size()), options.mesh.data, options.packs_per_rank, m);
    layouts.push_back(TokenLayout::Packed(options.layout,
                                          {packs.begin() + range.begin, packs.begin() + range.end},
                                          options.mesh.data, options.mesh.ring));
  }
  const bool copied = job.checkpoints && options.device != Device::kCuda;  // to the host's memory
  const std::vector<int64_t> copies = copied ? CheckpointCopies(source->config, options)
                                             : std::vector<int64_t>(size_t(options.mesh.size()));
  return Plan(
      source->config, options.mesh, copies,
      [&](int64_t data, int64_t ring) {
        Signature own;
        for (const TokenLayout& layout : layouts) {
          own.insert(own.end(), {layout.count(data, ring), layout.max_count(data)});
        }
        return own;
      },
      [&](int rank) { return Trainer::Foresee(rank, source, options, packs); });
}

absl::StatusOr<MemoryPlan> PlanMemory(Source source, const PlannedInference& given) {
  const PlannedInference job = WithContext(source, given);
  const MeshShape& mesh = job.load.mesh;
  TOROID_RETURN_IF_ERROR(CheckMesh(source->config, mesh));
  TOROID_RETURN_IF_ERROR(CheckDevice(job.load.device, job.load.compute));
  if (job.load.context < 1 || job.load.context >= int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("a context of ", job.load.context, " tokens: give 1 to 2^31 - 1"));
  }
  const int64_t prompt = job.load.context - job.max_tokens;
  const TokenLayout layout(job.load.layout, {prompt}, mesh.data, mesh.ring);
  TOROID_RETURN_IF_ERROR(CheckAnswers(job.prompts, job.n));
  GenerateRequest request;
  request.prompt_ids.assign(size_t(prompt), 0);
  request.more_prompt_ids.assign(size_t(job.prompts - 1), request.prompt_ids);
  request.n = job.n;
  request.batch = job.batch;
  request.max_tokens = job.max_tokens;
  return Plan(
      source->config, mesh, std::vector<int64_t>(size_t(mesh.size())),
      [&](int64_t data, int64_t ring) {
        int64_t made = 0;  // tokens of the output whose keys lie here
        for (int64_t p = prompt; p < job.load.context; ++p) {
          made +=
              data == 0 && TokenLayout::StripedOwner(job.load.page_tokens, mesh.ring, p) == ring;
        }
        return Signature{data == 0 && ring == 0, data == 0, layout.count(data, ring),
                         layout.max_count(data), made};
      },
      [&](int rank) { return Engine::Foresee(rank, source, job.load, request); });
}

std::vector<std::string> Advise(Source source, const PlannedTraining& job, int64_t limit) {
  std::vector<std::string> advice;
  for (const auto& change :
       {Slower(source, job, limit), OnMoreRanks(source, job, limit), Shorter(source, job, limit)}) {
    if (change) advice.push_back(Line(source, *change));
  }
  return advice;
}

std::vector<std::string> Advise(Source source, const PlannedInference& given, int64_t limit) {
  const PlannedInference job = WithContext(source, given);
  std::vector<std::string> advice;
  std::vector<Change<PlannedInference>> bases = {{"", job}};
  if (job.load.compute != Compute::kBF16) {
    bases.push_back({" --compute bf16", job});
    bases[1].job.load.compute = Compute::kBF16;
    if (Fit(source, bases[1].job, limit)) {
      advice.push_back(Line<PlannedInference>(source, {"--compute bf16", bases[1].job}));
    }
  }
  std::optional<Change<PlannedInference>> larger;
  for (int64_t growth = 2; growth <= kMostGrowth && !larger; growth *= 2) {
    for (const Change<PlannedInference>& base : bases) {
      for (const MeshShape& mesh : Larger(job.load.mesh, growth, /*training=*/false)) {
        Change<PlannedInference> change{absl::StrCat("--mesh ", ToString(mesh), base.text),
                                        base.job};
        change.job.load.mesh = mesh;
        if (!larger && Fit(source, change.job, limit)) larger = change;
      }
    }
  }
  if (larger) advice.push_back(Line(source, *larger));
  const int64_t unit = job.load.context > kContextUnit ? kContextUnit : 1;
  const auto of = [&](int64_t units) {
    PlannedInference changed = job;
    changed.load.context = std::max<int64_t>(2, units * unit);
    return changed;
  };
  const int64_t units =
      job.load.context < 3 ? 0 : Greatest((job.load.context - 1) / unit, [&](int64_t n) {
        return Fit(source, of(n), limit).has_value();
      });
  if (units > 0) {
    const Change<PlannedInference> shorter{absl::StrCat("--context ", of(units).load.context),
                                           of(units)};
    advice.push_back(Line(source, shorter));
  }
  return advice;
}

absl::Status CheckFits(Source source, const PlannedTraining& job, int64_t limit) {
  TOROID_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(source, job));
  const auto most = std::max_element(
      plan.groups.begin(), plan.groups.end(),
      [](const auto& a, const auto& b) { return a.memory.total() < b.memory.total(); });
  if (most->memory.total() <= limit) return absl::OkStatus();
  const std::vector<std::string> advice = Advise(source, job, limit);
  return absl::FailedPreconditionError(absl::StrCat(
      "the job does not fit: rank ", most->ranks[0], " needs ", Bytes(most->memory.total()),
      " of the ", Bytes(limit), " that it may take: ",
      advice.empty() ? "no change of mesh, remat or sequence length was found that fits"
                     : absl::StrCat("the smallest change that fits is ", advice[0])));
}

}  // namespace toroid
