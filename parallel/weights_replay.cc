#include "parallel/weights_replay.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/contribution_file.h"
#include "parallel/param_hash.h"
#include "parallel/thread_communicator.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// Sums of squares, in double, of one gradient on two meshes.
constexpr double kRounding = 1e-9;

bool Close(double a, double b) {
  if (!std::isfinite(a) || !std::isfinite(b)) return std::isfinite(a) == std::isfinite(b);
  return std::abs(a - b) <= kRounding * std::max(a, b);
}

bool SameBits(double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

}  // namespace

struct WeightsReplay::Rank {
  int64_t number = 0;
  std::unique_ptr<Backend> ops;
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ParamStore> store;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<char> mean;  // all groups
  int64_t updates = 0;
  absl::Status status;
  std::string differs;

  int64_t bytes(int64_t elements) const { return RowBytes(ops->dtype(), elements); }
  char* mean_of(int64_t group) { return mean.data() + bytes(store->groups().StoredBegin(group)); }
};

struct WeightsReplay::Squares {
  int64_t giver = 0;
  std::vector<double> sums;

  // Of the same numbers on this pod's mesh, `own`.
  bool Fit(const std::vector<double>& own, bool same_mesh) const {
    return std::equal(sums.begin(), sums.end(), own.begin(), own.end(),
                      same_mesh ? SameBits : Close);
  }
};

WeightsReplay::WeightsReplay(FileSystem& files, const std::string& folder,
                             const ContributionsAbout& about)
    : files_(files),
      folder_(folder),
      about_(about),
      meshes_differ_(std::any_of(about.meshes.begin(), about.meshes.end(),
                                 [&](const MeshShape& mesh) { return mesh != about.meshes[0]; })),
      pending_(about.update->pending) {}

WeightsReplay::~WeightsReplay() = default;

absl::StatusOr<std::unique_ptr<WeightsReplay>> WeightsReplay::Begin(
    FileSystem& files, const std::string& folder, const ContributionsAbout& about) {
  std::unique_ptr<WeightsReplay> replay(new WeightsReplay(files, folder, about));
  TOROID_RETURN_IF_ERROR(replay->MakeRanks());
  return replay;
}

// Sums over ranks need all of them at once.
void WeightsReplay::OnRanks(const std::function<void(Rank&)>& work) {
  std::vector<std::thread> threads;
  for (const auto& rank : ranks_) threads.emplace_back([&work, &rank] { work(*rank); });
  for (std::thread& thread : threads) thread.join();
}

absl::Status WeightsReplay::MakeRanks() {
  const MeshShape& shape = about_.meshes[size_t(about_.pod)];
  std::vector<std::unique_ptr<Communicator>> worlds = NewThreadWorld(int(shape.size()));
  for (int64_t r = 0; r < shape.size(); ++r) {
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->number = r;
  }
  OnRanks([&](Rank& rank) {
    rank.mesh = std::make_unique<Mesh>(std::move(worlds[size_t(rank.number)]), shape);
    rank.status = Load(rank);
  });
  for (const auto& rank : ranks_) TOROID_RETURN_IF_ERROR(rank->status);
  return absl::OkStatus();
}

absl::Status WeightsReplay::Load(Rank& rank) {
  rank.ops = NewCpuBackend(about_.dtype, /*threads=*/1);
  const Stream s = rank.ops->NewStream(/*communication=*/false);
  const int64_t tensor_rank = rank.mesh->tensor_rank();
  ParamGroups groups(about_.model,
                     ParamLayout(about_.model, tensor_rank, rank.mesh->shape().tensor), tensor_rank,
                     rank.mesh->shard().size(), about_.layers);
  TOROID_ASSIGN_OR_RETURN(rank.store,
                          ParamStore::Create(*rank.ops, s, *rank.mesh, std::move(groups), {}));
  TOROID_ASSIGN_OR_RETURN(rank.optimizer,
                          Optimizer::Create(*rank.ops, s, *rank.store, about_.update->optimizer));
  rank.updates = about_.update->updates;
  rank.mean.resize(size_t(rank.bytes(rank.store->groups().stored_size())));

  const std::string path = absl::StrCat(folder_, "/", BeginName(rank.number));
  TOROID_ASSIGN_OR_RETURN(const std::vector<Contribution> kept, ReadContributions(files_, path));
  const auto wrong = [&path] {
    return absl::DataLossError(absl::StrCat(path, ": not what a rank began with"));
  };
  const bool delayed = about_.exchange.mode == ExchangeSpec::Mode::kDelayed;
  if (int64_t(kept.size()) != rank.store->groups().count()) return wrong();
  for (int64_t g = 0; g < rank.store->groups().count(); ++g) {
    const Contribution& of = kept[size_t(g)];
    const int64_t bytes = rank.store->Stored(Kind::kWeights, g).bytes();
    const auto fits = [&](const std::string& blob) { return int64_t(blob.size()) == bytes; };
    if (of.group != g || of.blobs.size() != (delayed ? 4u : 3u) ||
        !std::all_of(of.blobs.begin(), of.blobs.end(), fits)) {
      return wrong();
    }
    size_t blob = 0;
    for (const Kind kind : {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments}) {
      rank.ops->Upload(s, of.blobs[blob++].data(), rank.store->Stored(kind, g));
    }
    if (delayed) std::copy(of.blobs[blob].begin(), of.blobs[blob].end(), rank.mean_of(g));
  }
  return absl::OkStatus();
}

// --- steps ---------------------------------------------------------------------------------------

void WeightsReplay::Take(int64_t rank, int64_t group, const void* mean) {
  Rank& of = *ranks_[size_t(rank)];
  std::memcpy(of.mean_of(group), mean, size_t(of.store->Stored(Kind::kWeights, group).bytes()));
}

absl::StatusOr<std::unique_ptr<WeightsReplay::Squares>> WeightsReplay::ReadSquares(
    int64_t step, bool of_weights) {
  const std::string path = absl::StrCat(folder_, "/", SquaresName(step, of_weights));
  TOROID_ASSIGN_OR_RETURN(const std::vector<Contribution> kept, ReadContributions(files_, path));
  auto squares = std::make_unique<Squares>();
  if (kept.size() != 1 || kept[0].blobs.size() != 1 || kept[0].pod < 0 ||
      kept[0].pod >= int64_t(about_.meshes.size()) ||
      kept[0].blobs[0].size() % sizeof(double) != 0) {
    return absl::DataLossError(absl::StrCat(path, ": not the squared sums of a step"));
  }
  squares->giver = kept[0].pod;
  squares->sums.resize(kept[0].blobs[0].size() / sizeof(double));
  std::copy_n(kept[0].blobs[0].data(), kept[0].blobs[0].size(),
              reinterpret_cast<char*>(squares->sums.data()));
  return squares;
}

absl::StatusOr<std::string> WeightsReplay::Update(int64_t step) {
  if (!std::exchange(pending_, false)) return std::string();
  std::unique_ptr<Squares> gradient, weights;
  if (meshes_differ_) {
    TOROID_ASSIGN_OR_RETURN(gradient, ReadSquares(step, /*of_weights=*/false));
    const double sum = std::accumulate(gradient->sums.begin(), gradient->sums.end(), 0.0);
    if (about_.update->optimizer.kind == OptimizerSpec::Kind::kAdafactor && std::isfinite(sum)) {
      TOROID_ASSIGN_OR_RETURN(weights, ReadSquares(step, /*of_weights=*/true));
    }
  }
  const MeshShape& mesh = about_.meshes[size_t(about_.pod)];
  OnRanks([&](Rank& rank) {
    ParamStore& store = *rank.store;
    const auto taken = [&](Kind kind, const Squares* kept) {
      const std::vector<double> own = store.SquaredSums(kind);
      if (kept == nullptr) return own;
      if (!kept->Fit(own, about_.meshes[size_t(kept->giver)] == mesh)) {
        rank.differs =
            absl::StrCat("step ", step, ": the squared sums that pod ", kept->giver,
                         " gave of the ", kind == Kind::kGradients ? "gradient" : "weights",
                         " are not those of what is made again");
        return own;
      }
      return kept->sums;
    };
    for (int64_t g = 0; g < store.groups().count(); ++g) {
      store.ops().Upload(store.stream(), rank.mean_of(g), store.Stored(Kind::kGradients, g));
    }
    rank.optimizer->TakeSquaresFrom([&] { return taken(Kind::kWeights, weights.get()); });
    rank.optimizer->ClipAndUpdate(step - 1, taken(Kind::kGradients, gradient.get()),
                                  about_.update->max_norm, rank.updates);
  });
  return ranks_[0]->differs;
}

// --- what it comes to ----------------------------------------------------------------------------

uint64_t WeightsReplay::Hash() {
  uint64_t hash = 0;
  OnRanks([&hash](Rank& rank) {
    const uint64_t own = ParamHash(*rank.store);
    if (rank.number == 0) hash = own;
  });
  return hash;
}

std::vector<uint64_t> WeightsReplay::State() {
  std::vector<uint64_t> state;
  OnRanks([&](Rank& rank) {
    std::vector<uint64_t> own = {uint64_t(rank.updates), uint64_t(pending_)};
    for (const Kind kind : {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments}) {
      own.push_back(ParamHash(*rank.store, nullptr, kind));
    }
    if (pending_) own.push_back(ParamHash(*rank.store, rank.mean.data()));
    if (rank.number == 0) state = std::move(own);
  });
  return state;
}

}  // namespace toroid
