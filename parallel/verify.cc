#include "parallel/verify.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr double kBoundF64 = 1e-9;
constexpr double kLeastBound = 1e-6;
constexpr double kBoundFactor = 4.0;
constexpr int kLogits = -1;  // the tap number of the logits, which follow the last layer

// Whole tensors by (layer, tap).
using Key = std::pair<int64_t, int>;
using Taps = std::map<Key, std::vector<double>>;

double RelativeError(const std::vector<double>& x, const std::vector<double>& reference) {
  double worst = 0, scale = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double difference = std::abs(x[i] - reference[i]);
    worst = std::isfinite(difference) ? std::max(worst, difference) : INFINITY;
    scale = std::max(scale, std::abs(reference[i]));
  }
  return scale > 0 ? worst / scale : worst;
}

// Where this rank's part of a tap lies in the whole tensor [T, C].
struct Place {
  int64_t columns = 0;  // C
  int64_t col_begin = 0;
  bool by_share = false;  // rows are of the residual's share, not of all of this rank's tokens
  int64_t skip_begin = 0, skip_end = 0;  // local columns that another rank contributes
};

Place PlaceOf(const Engine& engine, Tap tap, int64_t tensor_rank) {
  const ModelConfig& config = engine.config();
  const HeadLayout& heads = engine.model().layout().heads();
  const int64_t K = config.head_dim;
  Place place;
  switch (tap) {
    case Tap::kAttentionIn:
    case Tap::kMlpIn:
      place.columns = config.dim;  // the same on all ranks of `tensor`
      place.skip_end = tensor_rank == 0 ? 0 : config.dim;
      break;
    case Tap::kQuery:
    case Tap::kAttentionOut:
    case Tap::kDQuery:
    case Tap::kDAttentionOut:
      place.columns = config.query_heads * K;
      place.col_begin = heads.query_begin() * K;
      break;
    case Tap::kKey:
    case Tap::kValue:
      place.columns = config.kv_heads * K;
      place.col_begin = heads.kv_begin() * K;
      while (place.skip_end < heads.kv_count() * K && !heads.owns_kv(place.skip_end / K)) {
        place.skip_end += K;
      }
      break;
    case Tap::kDKey:
    case Tap::kDValue:  // ranks that share a head add up
      place.columns = config.kv_heads * K;
      place.col_begin = heads.kv_begin() * K;
      break;
    case Tap::kMlpOut:
    case Tap::kResidual:
    case Tap::kDResidual:
    case Tap::kDMlpIn:
    case Tap::kDAttentionIn:
      place.columns = config.dim;
      place.by_share = true;
      break;
  }
  return place;
}

// The whole tensor of a tap, from all ranks: each element is contributed once, the others add
// zeros.
std::vector<double> Assemble(Engine& engine, const std::vector<int32_t>& positions, int64_t total,
                             Tap tap, const std::vector<double>& own, int64_t own_columns) {
  Mesh& mesh = engine.mesh();
  const Place place = PlaceOf(engine, tap, mesh.tensor_rank());
  const ResidualLayout residual(int64_t(positions.size()), mesh.tensor_rank(), mesh.shape().tensor);
  std::vector<double> whole(total * place.columns, 0.0);
  const int64_t first = place.by_share ? residual.begin() : 0;
  int64_t rows = place.by_share ? residual.valid() : int64_t(positions.size());
  if (place.by_share && residual.whole() && mesh.tensor_rank() != 0) rows = 0;
  for (int64_t i = 0; i < rows; ++i) {
    double* to = whole.data() + positions[first + i] * place.columns + place.col_begin;
    for (int64_t c = 0; c < own_columns; ++c) {
      if (c < place.skip_begin || c >= place.skip_end) to[c] = own[i * own_columns + c];
    }
  }
  SumHost(mesh.world(), whole);
  return whole;
}

// Of the runs that verify is made of: its progress counts them, not their tokens.
EngineEvents OnlyCancelled(const EngineEvents& events) {
  EngineEvents quiet;
  quiet.cancelled = events.cancelled;
  return quiet;
}

// Runs one rank of its own over ids and hands every tap and the logits to `see`.
absl::Status RunAlone(const Engine& engine, const VerifyRequest& request, Compute compute,
                      ProgressBoard* board, const EngineEvents& events,
                      const std::function<void(Key, std::vector<double>)>& see) {
  LoadRequest load = engine.load_request();
  load.mesh = MeshShape{};
  load.layout = {LayoutRule::Kind::kContiguous, 1};
  load.compute = compute;
  load.device = Device::kCpu;  // on a GPU too: a reference of other code is the better one
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> alone,
                          Engine::CreatePart(std::make_unique<SelfCommunicator>(),
                                             engine.shared_source(), load, request.layers, board));
  const Observer observer = [&](int64_t layer, Tap tap, Tensor x) {
    see({layer, int(tap)}, OnHost(alone->backend(), alone->stream(), x));
  };
  std::vector<double> logits;
  TOROID_RETURN_IF_ERROR(alone->Observe(
      request.ids, observer,
      [&](int64_t, const std::vector<double>& row) {
        logits.insert(logits.end(), row.begin(), row.end());
      },
      OnlyCancelled(events)));
  see({alone->model().layers(), kLogits}, std::move(logits));
  return absl::OkStatus();
}

// The reference and, per tap, the bound. Rank 0 only.
absl::Status MakeReference(const Engine& engine, const VerifyRequest& request, ProgressBoard* board,
                           const EngineEvents& events, Taps& reference,
                           std::map<Key, double>& bounds) {
  events.on_progress({"verify", 0, 3});
  TOROID_RETURN_IF_ERROR(
      RunAlone(engine, request, Compute::kF64, board, events, [&](Key key, std::vector<double> x) {
        bounds[key] = kBoundF64;
        reference[key] = std::move(x);
      }));
  events.on_progress({"verify", 1, 3});
  const Compute compute = engine.load_request().compute;
  if (compute == Compute::kF64) return absl::OkStatus();
  return RunAlone(engine, request, compute, board, events, [&](Key key, std::vector<double> x) {
    bounds[key] = std::max(kLeastBound, kBoundFactor * RelativeError(x, reference[key]));
  });
}

}  // namespace

absl::StatusOr<VerifyResult> Verify(Engine& loaded, Communicator& world,
                                    const VerifyRequest& request, ProgressBoard* board,
                                    const EngineEvents& events) {
  std::unique_ptr<Engine> part;
  if (request.layers > 0 && request.layers < loaded.config().layers) {
    TOROID_ASSIGN_OR_RETURN(
        part, Engine::CreatePart(world.Split([](int) { return 0; }), loaded.shared_source(),
                                 loaded.load_request(), request.layers, board));
  }
  Engine& engine = part != nullptr ? *part : loaded;
  const bool judge = engine.mesh().rank() == 0;
  Taps reference;
  std::map<Key, double> bounds;
  absl::Status made;
  if (judge) made = MakeReference(engine, request, board, events, reference, bounds);
  TOROID_RETURN_IF_ERROR(ShareStatus(engine.mesh().world(), made));

  VerifyResult result;
  const auto compare = [&](Key key, const std::string& name, int64_t layer,
                           const std::vector<double>& x) {
    const TensorError error{name, layer, RelativeError(x, reference[key]), bounds[key]};
    const double excess = error.error / error.bound;
    if (result.tensors.empty() || excess > result.worst.error / result.worst.bound) {
      result.worst = error;
    }
    result.tensors.push_back(error);
  };
  const int64_t total = int64_t(request.ids.size());
  const TokenLayout layout(engine.load_request().layout, {total}, engine.mesh().shape().data,
                           engine.mesh().shape().ring);
  const std::vector<int32_t> positions =
      layout.Positions(engine.mesh().data_rank(), engine.mesh().ring_rank());
  if (judge) events.on_progress({"verify", 2, 3});
  const Observer observer = [&](int64_t layer, Tap tap, Tensor x) {
    const std::vector<double> own = OnHost(engine.backend(), engine.stream(), x);
    const std::vector<double> whole = Assemble(engine, positions, total, tap, own, x.cols());
    if (judge) compare({layer, int(tap)}, TapName(tap), layer, whole);
  };
  std::vector<double> logits;
  TOROID_RETURN_IF_ERROR(engine.Observe(
      request.ids, observer,
      [&](int64_t, const std::vector<double>& row) {
        logits.insert(logits.end(), row.begin(), row.end());
      },
      OnlyCancelled(events)));
  if (judge) {
    compare({engine.model().layers(), kLogits}, "logits", -1, logits);
    events.on_progress({"verify", 3, 3});
  }
  result.pass = result.worst.error <= result.worst.bound;
  result.report.mesh = engine.load_request().mesh;
  return result;
}

}  // namespace toroid
