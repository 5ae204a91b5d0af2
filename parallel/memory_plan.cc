#include "parallel/memory_plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/model/params.h"
#include "core/status_macros.h"
#include "parallel/engine.h"

namespace toroid {
namespace {

constexpr int64_t kMostRanks = 1 << 16;
constexpr int64_t kMostGrowth = 1 << 10;  // of a mesh, in advice

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

// `own(data, ring)`: what tells ranks of different tokens apart; `foresee(rank)`: their bytes.
template <typename Own, typename Foresee>
absl::StatusOr<MemoryPlan> Plan(const ModelConfig& config, const MeshShape& mesh, Own own,
                                Foresee foresee) {
  TOROID_RETURN_IF_ERROR(CheckMesh(config, mesh));
  const std::vector<Signature> tensor = TensorSignatures(config, mesh.tensor);
  MemoryPlan plan{mesh, {}};
  std::map<Signature, size_t> known;
  for (int rank = 0; rank < int(mesh.size()); ++rank) {
    const int64_t t = rank % mesh.tensor, ring = rank / mesh.tensor % mesh.ring;
    Signature signature = own(rank / (mesh.tensor * mesh.ring), ring);
    signature.push_back(rank == 0);
    signature.insert(signature.end(), tensor[t].begin(), tensor[t].end());
    const auto [found, fresh] = known.emplace(std::move(signature), plan.groups.size());
    if (fresh) {
      TOROID_ASSIGN_OR_RETURN(const RankMemory memory, foresee(rank));
      plan.groups.push_back({memory, {}});
    }
    plan.groups[found->second].ranks.push_back(rank);
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

// The first of these jobs that fits, as advice; nothing if none does.
template <typename Job>
bool FirstFit(const Source& source, const std::vector<std::pair<std::string, Job>>& jobs,
              int64_t limit, std::vector<std::string>& advice) {
  for (const auto& [text, job] : jobs) {
    const absl::StatusOr<MemoryPlan> plan = PlanMemory(source, job);
    if (!plan.ok() || plan->most() > limit) continue;
    advice.push_back(absl::StrCat(text, ": ", Bytes(plan->most()), " on a rank at most"));
    return true;
  }
  return false;
}

struct RematName {
  Remat remat;
  const char *flag, *field;
};
constexpr RematName kRemats[] = {
    {Remat::kNone, "--remat none", "--set train.remat=NONE"},
    {Remat::kAttentionOutput, "--remat attention_output", "--set train.remat=ATTENTION_OUTPUT"},
    {Remat::kBlock, "--remat block", "--set train.remat=BLOCK"}};

// Training with less kept and more computed again; each change beside those before it.
std::vector<std::pair<std::string, PlannedTraining>> Slower(const PlannedTraining& job) {
  std::vector<std::pair<std::string, PlannedTraining>> jobs;
  PlannedTraining changed = job;
  std::string text;
  const auto add = [&](const std::string& option) {
    absl::StrAppend(&text, text.empty() ? "" : " ", option);
    jobs.emplace_back(text, changed);
  };
  if (job.options.packs_per_rank > 1) {
    changed.options.packs_per_rank = 1;
    add(job.of_spec ? "--set train.packs_per_rank=1" : "--packs-per-rank 1");
  }
  const std::string before = text;
  for (const RematName& name : kRemats) {
    if (int(name.remat) <= int(job.options.remat)) continue;
    text = before;
    changed.options.remat = name.remat;
    add(job.of_spec ? name.field : name.flag);
  }
  return jobs;
}

}  // namespace

int64_t MemoryPlan::most() const {
  int64_t most = 0;
  for (const Group& group : groups) most = std::max(most, group.memory.total());
  return most;
}

absl::StatusOr<MemoryPlan> PlanMemory(Source source, const PlannedTraining& job) {
  const TrainOptions& options = job.options;
  TOROID_RETURN_IF_ERROR(CheckMesh(source->config, options.mesh));
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
  return Plan(
      source->config, options.mesh,
      [&](int64_t data, int64_t ring) {
        Signature own;
        for (const TokenLayout& layout : layouts) {
          own.insert(own.end(), {layout.count(data, ring), layout.max_count(data)});
        }
        return own;
      },
      [&](int rank) { return Trainer::Foresee(rank, source, options, packs, job.checkpoints); });
}

absl::StatusOr<MemoryPlan> PlanMemory(Source source, const PlannedInference& given) {
  const PlannedInference job = WithContext(source, given);
  const MeshShape& mesh = job.load.mesh;
  TOROID_RETURN_IF_ERROR(CheckMesh(source->config, mesh));
  if (job.load.context < 1 || job.load.context >= int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("a context of ", job.load.context, " tokens: give 1 to 2^31 - 1"));
  }
  const int64_t prompt = job.load.context - job.max_tokens;
  const TokenLayout layout(job.load.layout, {prompt}, mesh.data, mesh.ring);
  return Plan(
      source->config, mesh,
      [&](int64_t data, int64_t ring) {
        int64_t made = 0;  // tokens of the output whose keys lie here
        for (int64_t p = prompt; p < job.load.context; ++p) {
          made +=
              data == 0 && TokenLayout::StripedOwner(job.load.page_tokens, mesh.ring, p) == ring;
        }
        return Signature{data == 0 && ring == 0, data == 0, layout.count(data, ring),
                         layout.max_count(data), made};
      },
      [&](int rank) { return Engine::Foresee(rank, source, job.load, prompt, job.max_tokens); });
}

std::vector<std::string> Advise(Source source, const PlannedTraining& job, int64_t limit) {
  std::vector<std::string> advice;
  const auto slower = Slower(job);
  FirstFit(source, slower, limit, advice);
  for (int64_t growth = 2; growth <= kMostGrowth; growth *= 2) {
    std::vector<std::pair<std::string, PlannedTraining>> jobs;
    for (const bool slow : {false, true}) {
      if (slow && slower.empty()) continue;
      for (const MeshShape& mesh : Larger(job.options.mesh, growth, /*training=*/true)) {
        PlannedTraining changed = slow ? slower.back().second : job;
        changed.options.mesh = mesh;
        jobs.emplace_back(absl::StrCat("--mesh ", ToString(mesh),
                                       slow ? absl::StrCat(" ", slower.back().first) : ""),
                          changed);
      }
    }
    if (FirstFit(source, jobs, limit, advice)) break;
  }
  std::vector<std::pair<std::string, PlannedTraining>> shorter;
  for (int64_t length = job.sequence_length / 2; length >= 1; length /= 2) {
    PlannedTraining changed = job;
    changed.sequence_length = length;
    shorter.emplace_back(
        absl::StrCat(job.of_spec ? "--set train.data.sequence_length=" : "--sequence-length ",
                     length),
        changed);
  }
  FirstFit(source, shorter, limit, advice);
  return advice;
}

std::vector<std::string> Advise(Source source, const PlannedInference& given, int64_t limit) {
  const PlannedInference job = WithContext(source, given);
  std::vector<std::string> advice;
  PlannedInference changed = job;
  changed.load.compute = Compute::kBF16;
  const PlannedInference narrow = changed;
  const bool wide = job.load.compute != Compute::kBF16;
  if (wide) FirstFit<PlannedInference>(source, {{"--compute bf16", narrow}}, limit, advice);
  for (int64_t growth = 2; growth <= kMostGrowth; growth *= 2) {
    std::vector<std::pair<std::string, PlannedInference>> jobs;
    for (const PlannedInference* base : {&job, &narrow}) {
      if (base == &narrow && !wide) continue;
      for (const MeshShape& mesh : Larger(job.load.mesh, growth, /*training=*/false)) {
        changed = *base;
        changed.load.mesh = mesh;
        jobs.emplace_back(
            absl::StrCat("--mesh ", ToString(mesh), base == &narrow ? " --compute bf16" : ""),
            changed);
      }
    }
    if (FirstFit(source, jobs, limit, advice)) break;
  }
  std::vector<std::pair<std::string, PlannedInference>> shorter;
  for (int64_t context = job.load.context / 2; context >= 2; context /= 2) {
    changed = job;
    changed.load.context = context;
    shorter.emplace_back(absl::StrCat("--context ", context), changed);
  }
  FirstFit(source, shorter, limit, advice);
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
