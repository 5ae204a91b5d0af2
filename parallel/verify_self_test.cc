#include "parallel/verify_self_test.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "core/model/owed_sums.h"
#include "core/random.h"
#include "core/status_macros.h"
#include "parallel/faulty_communicator.h"
#include "parallel/thread_communicator.h"
#include "parallel/verify_training.h"

namespace toroid {
namespace {

constexpr MeshShape kMesh{1, 3, 2};
constexpr char kModel[] = "random:tiny-mqa";  // its one KV head is held by both ranks of `tensor`
constexpr uint64_t kSeed = 4;

// What one rank is given.
struct RankInput {
  TrainOptions options;
  TrainBatch batch;
  FaultyVerbs faults;
  RoundsRule rounds = Rounds;
};

struct Bug {
  const char* name;
  void (*plant)(const ModelConfig& config, int rank, RankInput& input);
};

// --- what travels on the ring

enum class RingMessage { kForwardKv, kBackwardKv, kBackwardSum, kHome };

// Names a rank's messages on `ring` in the order of RingAttention with no round left out: R - 1 of
// KV for each layer; then for each layer backward KV before round 1, in each middle round KV and
// the sum of gradients, in the last the sum, and at the end the sum to its home.
class RingOrder {
 public:
  explicit RingOrder(int64_t layers) : layers_(layers) {}

  RingMessage Next() {
    const int64_t R = kMesh.ring, forward = layers_ * (R - 1), each = 2 * R - 1;
    const int64_t i = calls_++ % (forward + layers_ * each);
    if (i < forward) return RingMessage::kForwardKv;
    const int64_t j = (i - forward) % each;
    if (j == each - 1) return RingMessage::kHome;
    const bool kv = j == 0 || (j % 2 == 1 && j < each - 2);
    return kv ? RingMessage::kBackwardKv : RingMessage::kBackwardSum;
  }

 private:
  const int64_t layers_;
  int64_t calls_ = 0;
};

// Every rank attends to its own block in every round of the backward.
void ReuseFirstKv(const ModelConfig& config, int, RankInput& input) {
  const auto order = std::make_shared<RingOrder>(config.layers);
  input.faults.ring_send_recv = [order](Communicator& ring, Stream s, Tensor send, int to,
                                        Tensor recv, int from) {
    ring.SendRecv(s, send, to, recv, from);
    if (order->Next() != RingMessage::kBackwardKv) return;
    s.cpu->Enqueue([=] {
      std::memcpy(recv.data, send.data, size_t(std::min(send.bytes(), recv.bytes())));
      return true;
    });
  };
}

// What other ranks found for K never arrives at its owner; V's does.
void KeepGradientOfK(const ModelConfig& config, int, RankInput& input) {
  const auto order = std::make_shared<RingOrder>(config.layers);
  input.faults.ring_send_recv = [order](Communicator& ring, Stream s, Tensor send, int to,
                                        Tensor recv, int from) {
    ring.SendRecv(s, send, to, recv, from);
    if (order->Next() != RingMessage::kHome) return;
    s.cpu->Enqueue([=] {
      std::memset(recv.data, 0, size_t(recv.bytes() / 2));  // K's gradient, then V's
      return true;
    });
  };
}

// --- sums over `tensor`

// What each rank adds to a sum has seven bits of mantissa.
void RoundPartials(const ModelConfig&, int, RankInput& input) {
  input.faults.tensor_reduce_scatter = [](Communicator& tensor, Stream s, Tensor x, Tensor out) {
    const auto rounded = std::make_shared<std::vector<double>>(x.size());
    s.cpu->Enqueue([=] {
      for (int64_t i = 0; i < x.size(); ++i) {
        (*rounded)[i] = FromBf16(ToBf16(float(x.as<double>()[i])));
      }
      return true;
    });
    tensor.ReduceScatter(s, Partial(Tensor(x.dtype, {x.size()}, rounded->data())), out);
    s.cpu->Enqueue([rounded] { return true; });  // which keeps it until the sum is made
  };
}

// Both ranks of `tensor` hold W_k of the one KV head; each keeps what its own query heads give.
void DropSumOfKey(const ModelConfig& config, int, RankInput& input) {
  std::vector<ParamSpec> layer, before;
  for (ParamSpec& spec : ParamTable(config)) {
    if (spec.layer == 0) layer.push_back(std::move(spec));
  }
  size_t key = 0;
  while (layer[key].name.find("k_proj.weight") == std::string::npos) ++key;
  before.assign(layer.begin(), layer.begin() + int64_t(key));
  const int64_t begin = OwedElements(config, before, kMesh.tensor);
  const int64_t all = OwedElements(config, layer, kMesh.tensor), n = layer[key].rows * config.dim;
  input.faults.tensor_all_reduce = [=](Communicator& tensor, Stream s, Tensor x, ReduceOp op) {
    const auto own = std::make_shared<std::vector<double>>(n);
    const bool owed = x.size() == all;
    if (owed) {
      s.cpu->Enqueue([=] {
        std::copy_n(x.as<double>() + begin, n, own->begin());
        return true;
      });
    }
    tensor.AllReduce(s, Partial(x), op);
    if (owed) {
      s.cpu->Enqueue([=] {
        std::copy_n(own->begin(), n, x.as<double>() + begin);
        return true;
      });
    }
  };
}

// The squares of what both ranks of `tensor` hold are added from both.
void CountReplicasTwice(const ModelConfig& config, int rank, RankInput& input) {
  const int64_t tensor_rank = rank % kMesh.tensor, shard = kMesh.data * kMesh.ring;
  const ParamGroups groups(config, ParamLayout(config, tensor_rank, kMesh.tensor), tensor_rank,
                           shard, config.layers);
  std::vector<double> copies;  // of each parameter
  for (int64_t g = 0; g < groups.count(); ++g) {
    for (const GroupMember& member : groups.group(g).members) {
      const bool replica =
          member.spec.split == Split::kReplicated || member.spec.split == Split::kKvHeads;
      copies.push_back(replica ? double(kMesh.tensor) : 1);
    }
  }
  input.faults.world_all_reduce = [copies](Communicator& world, Stream s, Tensor x, ReduceOp op) {
    world.AllReduce(s, Partial(x), op);
    if (op != ReduceOp::kSum || x.size() != int64_t(copies.size())) return;
    s.cpu->Enqueue([=] {
      for (int64_t i = 0; i < x.size(); ++i) x.as<double>()[i] *= copies[i];
      return true;
    });
  };
}

// --- schedule, batch, random numbers

// Query i of a rank sees keys 0 .. i of a rank before it, which were dealt just before its own: the
// mask of a rank after it, 0 .. i - 1, is taken instead.
void MaskOffByOne(const ModelConfig&, int, RankInput& input) {
  input.rounds = [](const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank,
                    int64_t ring_rank) {
    std::vector<Round> rounds = Rounds(layout, spec, data_rank, ring_rank);
    for (Round& round : rounds) {
      if (round.kv_of >= ring_rank) continue;
      std::vector<Tile> rows;
      for (const Tile& tile : round.tiles) {
        for (int64_t i = 1; i < tile.q_count; ++i) {
          rows.push_back({tile.q_begin + i, 1, tile.k_begin, std::min(i, tile.k_count)});
        }
      }
      round.tiles = std::move(rows);
    }
    return rounds;
  };
}

// Nobody predicts the last token of a document.
void LoseLastToken(const ModelConfig&, int rank, RankInput& input) {
  if (rank < kMesh.tensor) return;  // rank 0's batch is the reference's too
  input.batch.read = [read = input.batch.read](int64_t p) -> absl::StatusOr<Pack> {
    TOROID_ASSIGN_OR_RETURN(Pack pack, read(p));
    int64_t end = 0;
    for (const int64_t length : pack.document_lengths) {
      end += length;
      if (length > 1) pack.labels[size_t(end) - 2] = -1;
    }
    return pack;
  };
}

void KeyByRank(const ModelConfig&, int rank, RankInput& input) {
  input.options.dropout_seed += uint64_t(rank);
}

constexpr Bug kBugs[] = {
    {"hop-0 KV reused in the ring backward", ReuseFirstKv},
    {"dK not returned home", KeepGradientOfK},
    {"bf16 partials", RoundPartials},
    {"replica sum for W_k dropped", DropSumOfKey},
    {"striped mask off by one", MaskOffByOne},
    {"last token of a packed document lost", LoseLastToken},
    {"norm counts replicas twice", CountReplicasTwice},
    {"random numbers keyed by rank", KeyByRank},
};

// --- the runs

TrainOptions Options() {
  TrainOptions options;
  options.mesh = kMesh;
  options.layout = {LayoutRule::Kind::kStriped, 1};
  options.compute = Compute::kF64;
  options.packs_per_rank = 2;
  options.zeta = 1e-4;
  options.dropout = 0.1;
  options.dropout_seed = kSeed;
  options.optimizer.rate.peak = 1e-3;
  return options;
}

// Two packs, the first of three documents.
TrainBatch Batch(int64_t vocab) {
  TrainBatch batch;
  batch.documents = {{17, 9, 13}, {29}};
  batch.read = [=, documents = batch.documents](int64_t p) -> absl::StatusOr<Pack> {
    Pack pack;
    pack.document_lengths = documents[size_t(p)];
    for (const int64_t length : pack.document_lengths) {
      for (int64_t i = 0; i < length; ++i) {
        pack.ids.push_back(int32_t(Philox(kSeed, pack.ids.size(), uint64_t(p))[0] % vocab));
        if (i > 0) pack.labels.push_back(pack.ids.back());
      }
      pack.labels.push_back(-1);
    }
    return pack;
  };
  return batch;
}

// Null: without a bug.
absl::StatusOr<VerifyResult> RunWith(const std::shared_ptr<const ModelSource>& source,
                                     const Bug* bug) {
  std::vector<std::unique_ptr<Communicator>> world = NewThreadWorld(int(kMesh.size()));
  std::vector<absl::StatusOr<VerifyResult>> results(world.size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < int(world.size()); ++rank) {
    threads.emplace_back([&, rank, own = std::move(world[rank])]() mutable {
      RankInput input{Options(), Batch(source->config.vocab), {}, Rounds};
      if (bug != nullptr) bug->plant(source->config, rank, input);
      results[rank] = VerifyTraining(
          PlantFaults(std::move(own), std::move(input.faults)), source, input.options, input.batch,
          nullptr, [](const Progress&) {}, input.rounds);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results[0];
}

}  // namespace

absl::StatusOr<SelfTestResult> VerifySelfTest(
    const std::function<void(const Progress&)>& on_progress) {
  TOROID_ASSIGN_OR_RETURN(ModelSource opened, OpenModel(kModel, kSeed));
  const auto source = std::make_shared<const ModelSource>(std::move(opened));
  const int64_t runs = 1 + std::ssize(kBugs);
  SelfTestResult result;
  on_progress({"verify", 0, runs});
  TOROID_ASSIGN_OR_RETURN(result.clean, RunWith(source, nullptr));
  result.pass = result.clean.pass;
  for (const Bug& bug : kBugs) {
    on_progress({"verify", 1 + int64_t(result.bugs.size()), runs});
    TOROID_ASSIGN_OR_RETURN(const VerifyResult with, RunWith(source, &bug));
    result.bugs.push_back({bug.name, !with.pass, with.worst});
    result.pass = result.pass && !with.pass;
  }
  on_progress({"verify", runs, runs});
  return result;
}

}  // namespace toroid
