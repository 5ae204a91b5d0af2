#include "parallel/verify_training.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

constexpr double kBoundF64 = 1e-9;
constexpr double kLeastBound = 1e-6;
constexpr double kBoundFactor = 4.0;
constexpr double kLeastScale = 1e-6;           // of the largest value of all tensors
constexpr int64_t kAtOnce = int64_t{1} << 20;  // elements of a parameter compared at once

// Calls visit(group, member index, rows) for every parameter in the order of
// ParamStore::SquaredSums, a few rows at a time.
template <typename Visit>
void ForEachRows(const ParamStore& store, const Visit& visit) {
  int64_t parameter = 0;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    const std::vector<GroupMember>& members = store.groups().group(g).members;
    for (size_t m = 0; m < members.size(); ++m, ++parameter) {
      const int64_t rows = members[m].spec.rows;
      const int64_t step = std::max<int64_t>(1, kAtOnce / members[m].spec.cols);
      for (int64_t row = 0; row < rows; row += step) {
        visit(parameter, g, int64_t(m), Range{row, std::min(rows, row + step)});
      }
    }
  }
}

// Those rows of a parameter on one rank, which stores each in one piece: [rows x cols].
Tensor WholeRows(const ParamStore& alone, Kind kind, int64_t group, int64_t member, Range rows) {
  for (const ParamPiece& piece : alone.pieces(group)) {
    if (piece.member != member) continue;
    const ParamSpec& spec = alone.groups().group(group).members[member].spec;
    TOROID_CHECK_EQ(piece.count, spec.rows * spec.cols);
    return alone.Stored(kind, group, piece).Rows(rows.begin * spec.cols, rows.size() * spec.cols);
  }
  TOROID_CHECK(false);
}

// Calls visit(element among those rows, value, whether this rank counts it) for every element of
// them that is stored here.
template <typename Visit>
void ForEachStored(const ParamStore& store, Kind kind, int64_t group, int64_t member, Range rows,
                   const Visit& visit) {
  const GroupMember& of = store.groups().group(group).members[member];
  const ParamSlice& slice = of.slice;
  for (const ParamPiece& piece : store.pieces(group)) {
    if (piece.member != member) continue;
    const int64_t cols = slice.col_count;  // elements of the slice, row after row
    const int64_t begin = std::max(piece.begin, (rows.begin - slice.row_begin) * cols);
    const int64_t end = std::min(piece.begin + piece.count, (rows.end - slice.row_begin) * cols);
    if (begin >= end) continue;
    const std::vector<double> values =
        OnHost(store.ops(), store.stream(),
               store.Stored(kind, group, piece).Rows(begin - piece.begin, end - begin));
    for (int64_t e = begin; e < end; ++e) {
      const int64_t row = slice.row_begin + e / cols - rows.begin;
      visit(row * of.spec.cols + slice.col_begin + e % cols, values[e - begin],
            e >= of.counted_from);
    }
  }
}

// Of every parameter max |x - reference| over what all ranks store, infinite where x is no number.
// reference: one rank's, null but on rank 0. take: the reference's values become the mesh's.
std::vector<double> Distances(ParamStore* reference, ParamStore& store, Kind kind, bool take) {
  Communicator& world = store.mesh().world();
  std::vector<double> distances;
  ForEachRows(store, [&](int64_t parameter, int64_t group, int64_t member, Range rows) {
    distances.resize(parameter + 1, 0.0);
    double& distance = distances[parameter];
    const int64_t cols = store.groups().group(group).members[member].spec.cols;
    std::vector<double> values(rows.size() * cols);
    Tensor place;
    if (reference != nullptr) {
      place = WholeRows(*reference, kind, group, member, rows);
      values = OnHost(reference->ops(), reference->stream(), place);
    }
    BroadcastHost(world, values);
    ForEachStored(store, kind, group, member, rows, [&](int64_t i, double x, bool) {
      const double away = std::abs(x - values[i]);
      distance = std::isfinite(away) ? std::max(distance, away) : INFINITY;
    });
    if (!take) return;
    std::fill(values.begin(), values.end(), 0.0);
    ForEachStored(store, kind, group, member, rows, [&](int64_t i, double x, bool counted) {
      if (counted) values[i] = x;
    });
    SumHost(world, values);
    if (reference != nullptr) {
      reference->ops().Upload(reference->stream(), values.data(), place);
    }
  });
  MaxHost(world, distances);
  return distances;
}

// Of every parameter what its distances are divided by.
std::vector<double> Scales(ParamStore& reference, Kind kind) {
  std::vector<double> scales;
  ForEachRows(reference, [&](int64_t parameter, int64_t group, int64_t member, Range rows) {
    scales.resize(parameter + 1, 0.0);
    for (double x : OnHost(reference.ops(), reference.stream(),
                           WholeRows(reference, kind, group, member, rows))) {
      scales[parameter] = std::max(scales[parameter], std::abs(x));
    }
  });
  const double largest = *std::max_element(scales.begin(), scales.end());
  for (double& scale : scales) scale = std::max({scale, kLeastScale * largest, 1e-300});
  return scales;
}

double RelativeError(double x, double reference) {
  const double error = std::abs(x - reference) / std::max(std::abs(reference), 1e-300);
  return std::isfinite(error) ? error : INFINITY;
}

// What rank 0 knows before the mesh starts.
struct Reference {
  std::unique_ptr<Trainer> trainer;  // one rank in float64, its gradient made
  double loss = 0, loss_bound = 0;
  std::vector<double> scales, bounds;  // of gradients, by parameter
};

absl::StatusOr<std::unique_ptr<Trainer>> Alone(const std::shared_ptr<const ModelSource>& source,
                                               TrainOptions options, Compute compute,
                                               ProgressBoard* board) {
  options.mesh = {};
  options.layout = {LayoutRule::Kind::kContiguous, 1};
  options.compute = compute;
  if (compute == Compute::kF64) options.device = Device::kCpu;  // the only one that has it
  options.noise_scale_every = 0;
  return Trainer::Create(std::make_unique<SelfCommunicator>(), source, options, board);
}

absl::Status MakeReference(const std::shared_ptr<const ModelSource>& source,
                           const TrainOptions& options, const TrainBatch& batch,
                           ProgressBoard* board,
                           const std::function<void(const Progress&)>& on_progress,
                           Reference& reference) {
  on_progress({"verify", 0, 3});
  TOROID_ASSIGN_OR_RETURN(reference.trainer, Alone(source, options, Compute::kF64, board));
  TOROID_ASSIGN_OR_RETURN(reference.loss, reference.trainer->Gradient(0, batch));
  on_progress({"verify", 1, 3});
  ParamStore& store = reference.trainer->store();
  reference.scales = Scales(store, Kind::kGradients);
  reference.loss_bound = kBoundF64;
  reference.bounds.assign(reference.scales.size(), kBoundF64);
  if (options.compute == Compute::kF64) return absl::OkStatus();
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> alone,
                          Alone(source, options, options.compute, board));
  TOROID_ASSIGN_OR_RETURN(const double loss, alone->Gradient(0, batch));
  reference.loss_bound = std::max(kLeastBound, kBoundFactor * RelativeError(loss, reference.loss));
  reference.bounds = Distances(&store, alone->store(), Kind::kGradients, /*take=*/false);
  for (size_t i = 0; i < reference.bounds.size(); ++i) {
    reference.bounds[i] =
        std::max(kLeastBound, kBoundFactor * reference.bounds[i] / reference.scales[i]);
  }
  return absl::OkStatus();
}

void Add(VerifyResult& result, TensorError tensor) {
  const double excess = tensor.error / tensor.bound;
  if (result.tensors.empty() || excess > result.worst.error / result.worst.bound) {
    result.worst = tensor;
  }
  result.tensors.push_back(std::move(tensor));
}

// One row for each parameter: "gradient of model.layers.0.self_attn.q_proj.weight".
void AddParameters(VerifyResult& result, const char* what, const ParamStore& store,
                   const std::vector<double>& distances, const std::vector<double>& scales,
                   const std::vector<double>& bounds) {
  size_t i = 0;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const GroupMember& member : store.groups().group(g).members) {
      Add(result, {absl::StrCat(what, " ", member.spec.name), member.spec.layer,
                   distances[i] / scales[i], bounds[i]});
      ++i;
    }
  }
}

}  // namespace

absl::StatusOr<VerifyResult> VerifyTraining(std::unique_ptr<Communicator> world,
                                            std::shared_ptr<const ModelSource> source,
                                            const TrainOptions& options, const TrainBatch& batch,
                                            ProgressBoard* board,
                                            const std::function<void(const Progress&)>& on_progress,
                                            const RoundsRule& rounds) {
  const bool judge = world->rank() == 0;
  Reference reference;
  absl::Status made;
  if (judge) made = MakeReference(source, options, batch, board, on_progress, reference);
  TOROID_RETURN_IF_ERROR(ShareStatus(*world, made));

  if (judge) on_progress({"verify", 2, 3});
  TOROID_ASSIGN_OR_RETURN(
      const std::unique_ptr<Trainer> mesh,
      Trainer::Create(std::move(world), std::move(source), options, board, rounds));
  Communicator& all = mesh->mesh().world();
  ParamStore* const known = judge ? &reference.trainer->store() : nullptr;
  VerifyResult result;
  result.report.mesh = options.mesh;
  TOROID_ASSIGN_OR_RETURN(const double loss, mesh->Gradient(0, batch));
  const std::vector<double> gradients =
      Distances(known, mesh->store(), Kind::kGradients, /*take=*/true);
  StepResult step, reference_step;
  TOROID_RETURN_IF_ERROR(mesh->Update(step));
  if (judge) made = reference.trainer->Update(reference_step);
  TOROID_RETURN_IF_ERROR(ShareStatus(all, made));
  const std::vector<double> weights =
      Distances(known, mesh->store(), Kind::kWeights, /*take=*/false);
  TOROID_RETURN_IF_ERROR(mesh->mesh().Health());
  if (!judge) return result;

  const double bound = options.compute == Compute::kF64 ? kBoundF64 : kLeastBound;
  Add(result, {"loss", -1, RelativeError(loss, reference.loss), reference.loss_bound});
  AddParameters(result, "gradient of", *known, gradients, reference.scales, reference.bounds);
  Add(result,
      {"gradient norm", -1, RelativeError(step.grad_norm, reference_step.grad_norm), bound});
  AddParameters(result, "updated", *known, weights, Scales(*known, Kind::kWeights),
                std::vector<double>(weights.size(), bound));
  result.pass = result.worst.error <= result.worst.bound;
  on_progress({"verify", 3, 3});
  return result;
}

TrainBatch FirstTokens(const TrainBatch& batch, int64_t packs, int64_t tokens) {
  TrainBatch first = batch;
  if (packs > 0 && packs < int64_t(first.documents.size())) first.documents.resize(size_t(packs));
  if (tokens <= 0 || first.documents.empty()) return first;
  packs = int64_t(first.documents.size());
  const int64_t each = std::max<int64_t>(2, (tokens + packs - 1) / packs);
  for (std::vector<int64_t>& documents : first.documents) {
    int64_t left = each;
    std::vector<int64_t> kept;
    for (const int64_t length : documents) {
      if (left > 0) kept.push_back(std::min(left, length));
      left -= length;
    }
    documents = std::move(kept);
  }
  first.read = [read = batch.read,
                documents = first.documents](int64_t pack) -> absl::StatusOr<Pack> {
    TOROID_ASSIGN_OR_RETURN(Pack cut, read(pack));
    cut.document_lengths = documents[size_t(pack)];
    int64_t length = 0;
    for (const int64_t document : cut.document_lengths) length += document;
    cut.ids.resize(size_t(length));
    cut.labels.resize(size_t(length));
    return cut;
  };
  return first;
}

}  // namespace toroid
