// What a whole step of the trainer sends over each axis, as integers, pads counted: the test's own
// arithmetic for every remat mode, with and without a ring. (What a layer alone sends, and uneven
// shares: training_counters_test.cc.)
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "parallel/host_exchange.h"
#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

constexpr int64_t kLength = 48;  // of a pack: all shares of the meshes below are equal
constexpr int64_t kBlock = 10;   // rows of a block of logits
constexpr Axis kAxes[] = {Axis::kData, Axis::kRing, Axis::kTensor, Axis::kShard, Axis::kWorld};

struct StepCase {
  std::string model;
  MeshShape mesh;
  Remat remat = Remat::kBlock;
  Compute compute = Compute::kF32;
  bool prefetch = true;
};

using Traffic = std::map<Axis, CommCounters>;

// Adds the verbs of one axis by the ring algorithms' arithmetic.
struct Verbs {
  int64_t n;  // ranks
  CommCounters sum;

  void Add(int64_t calls, int64_t bytes) {
    sum.calls += calls;
    sum.bytes_sent += calls * bytes;
  }
  void Gather(int64_t bytes_each, int64_t calls = 1) {  // ReduceScatter too
    if (n > 1) Add(calls, (n - 1) * bytes_each);
  }
  void AllReduce(int64_t bytes, int64_t calls = 1) {
    if (n > 1) Add(calls, 2 * (n - 1) * bytes / n);
  }
};

// A step of two micro-batches, each a pack to a data rank. e: bytes of a number.
class Arithmetic {
 public:
  Arithmetic(const StepCase& c, const ModelConfig& config, int64_t rank)
      : c_(c), config_(config), rank_(rank % c.mesh.tensor) {}

  Traffic Step() {
    for (int micro = 0; micro < 2; ++micro) MicroBatch(micro == 0);
    shard_.AllReduce(2 * 8);  // labels of both micro-batches
    shard_.AllReduce(8);      // the loss
    int64_t parameters = 0;   // whose squares are summed
    for (const auto& [group, members] : Groups()) parameters += int64_t(members.size());
    world_.AllReduce(parameters * 8);
    return {{Axis::kData, {}},
            {Axis::kRing, ring_.sum},
            {Axis::kTensor, tensor_.sum},
            {Axis::kShard, shard_.sum},
            {Axis::kWorld, world_.sum}};
  }

 private:
  static constexpr int64_t kF32 = 4;
  int64_t L() const { return config_.layers; }

  // Parameters by the group that they travel in: -1 the embedding's, L the final one's.
  std::map<int64_t, std::vector<ParamSpec>> Groups() const {
    std::map<int64_t, std::vector<ParamSpec>> groups;
    for (const ParamSpec& spec : ParamTable(config_)) {
      if (!spec.alias.empty()) continue;
      const bool final = spec.layer < 0 && spec.group != "embedding" && !config_.tied_embeddings;
      groups[final ? L() : spec.layer].push_back(spec);
    }
    return groups;
  }
  // Elements of a group's buffer on this rank of `tensor`.
  int64_t Size(int64_t group) const {
    const ParamLayout layout(config_, rank_, c_.mesh.tensor);
    int64_t size = 0;
    const auto groups = Groups();
    for (const ParamSpec& spec : groups.at(group)) {
      const ParamSlice slice = layout.Slice(spec);
      size += (slice.row_count * slice.col_count + 63) / 64 * 64;
    }
    const int64_t pad = shard_.n * 64;
    return (size + pad - 1) / pad * pad;
  }

  void MicroBatch(bool first) {
    const int64_t head = config_.tied_embeddings ? -1 : L();
    // Weights: all groups forward, then all layers but the last again. The next micro-batch still
    // holds layer 0.
    std::vector<int64_t> gathered = {-1, head};
    for (int64_t layer = 0; layer < L(); ++layer) gathered.push_back(layer);
    for (int64_t layer = 0; layer + 1 < L(); ++layer) {
      if (first || layer > 0) gathered.push_back(layer);
    }
    const int64_t weight = c_.compute == Compute::kBF16 ? 2 : kF32;
    for (int64_t group : gathered) shard_.Gather(Size(group) / shard_.n * weight);
    // Gradients: each group once, the embedding also with what it gets as a tied head.
    std::vector<int64_t> reduced = {head, -1};
    for (int64_t layer = 0; layer < L(); ++layer) reduced.push_back(layer);
    for (int64_t group : reduced) {
      shard_.Gather(Size(group) / shard_.n * kF32);
      if (Owed(group) > 0) tensor_.AllReduce(Owed(group) * kF32);
    }
    Tokens();
  }

  // Elements that owe a sum over `tensor`: vectors that are not split, heads that several hold.
  int64_t Owed(int64_t group) const {
    const int64_t n = c_.mesh.tensor, H = config_.query_heads, G = config_.kv_heads;
    int64_t shared = 0;  // KV heads whose query heads lie on several ranks
    for (int64_t g = 0; g < G; ++g) {
      const auto holder = [&](int64_t head) {  // the rank i with floor(i H / n) <= head
        int64_t i = 0;
        while ((i + 1) * H / n <= head) ++i;
        return i;
      };
      shared += holder(g * H / G) != holder((g + 1) * H / G - 1);
    }
    int64_t owed = 0;
    const auto groups = Groups();
    for (const ParamSpec& spec : groups.at(group)) {
      if (spec.rows == 1) owed += spec.cols;  // these models' vectors are gains alone
      if (spec.split == Split::kKvHeads) owed += shared * config_.head_dim * spec.cols;
    }
    return owed;
  }

  void Tokens() {
    const int64_t R = c_.mesh.ring, n = c_.mesh.tensor, t = kLength / R, u = (t + n - 1) / n;
    const int64_t halves = config_.parallel_block ? 1 : 2, row = u * config_.dim * kF32;
    // Embedding; per layer a gather and a sum for each half, the same backward, and the gathers of
    // what is computed again, with block also the first half's sum; final norm and its gradient;
    // the embedding's gradient.
    int64_t again = c_.remat == Remat::kNone ? 0 : halves;
    if (c_.remat == Remat::kBlock && halves == 2) ++again;
    tensor_.Gather(row, 1 + L() * (4 * halves + again) + 2 + 1);
    for (int64_t begin = 0; begin < t; begin += kBlock) {
      tensor_.Gather(std::min(kBlock, t - begin) * 3 * 8);  // statistics of a block of logits
    }
    if (R == 1) return;
    const int64_t H = config_.query_heads, G = config_.kv_heads;
    const int64_t first = rank_ * H / n, last = (rank_ + 1) * H / n - 1;
    const int64_t numbers = 2 * t * (last * G / H - first * G / H + 1) * config_.head_dim;
    const int64_t kv = c_.compute == Compute::kBF16 ? 2 : kF32;
    const int64_t walks = c_.remat == Remat::kBlock ? 3 : 2;  // of K and V
    ring_.Add(L() * walks * (R - 1), numbers * kv);
    ring_.Add(L() * R, numbers * kF32);  // dK, dV
  }

  const StepCase c_;
  const ModelConfig config_;
  const int64_t rank_;  // of tensor
  Verbs ring_{c_.mesh.ring, {}}, tensor_{c_.mesh.tensor, {}};
  Verbs shard_{c_.mesh.data * c_.mesh.ring, {}}, world_{c_.mesh.size(), {}};
};

TrainBatch BatchOf(int64_t packs) {
  TrainBatch batch;
  batch.documents.assign(packs, {kLength});
  batch.read = [](int64_t) -> absl::StatusOr<Pack> {
    Pack pack;
    for (int32_t i = 0; i < kLength; ++i) pack.ids.push_back(i), pack.labels.push_back(i + 1);
    pack.document_lengths = {kLength};
    return pack;
  };
  return batch;
}

Traffic CountersOf(Mesh& mesh) {
  Traffic traffic;
  for (const Axis axis : kAxes) traffic[axis] = mesh.axis(axis).counters();
  return traffic;
}

// What the second step sent, less the two statuses that ranks share while they read it.
Traffic Counted(Trainer& trainer, const TrainBatch& batch) {
  EXPECT_TRUE(trainer.Step(0, batch).ok());
  const Traffic before = CountersOf(trainer.mesh());
  EXPECT_TRUE(trainer.Step(1, batch).ok());
  Traffic sent = CountersOf(trainer.mesh());
  CommCounters status = trainer.mesh().world().counters();
  EXPECT_TRUE(ShareStatus(trainer.mesh().world(), absl::OkStatus()).ok());
  status.calls = trainer.mesh().world().counters().calls - status.calls;
  status.bytes_sent = trainer.mesh().world().counters().bytes_sent - status.bytes_sent;
  for (auto& [axis, counters] : sent) {
    const int64_t statuses = axis == Axis::kWorld ? 2 : 0;
    counters.calls -= before.at(axis).calls + statuses * status.calls;
    counters.bytes_sent -= before.at(axis).bytes_sent + statuses * status.bytes_sent;
  }
  return sent;
}

std::vector<Traffic> CountedOn(const StepCase& c) {
  std::vector<Traffic> counted(c.mesh.size());
  const auto source = TestSource(c.model);
  RunOnRanks(int(c.mesh.size()), [&](std::unique_ptr<Communicator> world) {
    TrainOptions options;
    options.mesh = c.mesh;
    options.remat = c.remat;
    options.compute = c.compute;
    options.prefetch = c.prefetch;
    options.token_block = kBlock;
    options.optimizer.rate.peak = 1e-3;
    auto trainer = Trainer::Create(std::move(world), source, options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    counted[(*trainer)->mesh().rank()] = Counted(**trainer, BatchOf(2 * c.mesh.data));
  });
  return counted;
}

bool Same(const Traffic& a, const Traffic& b) {
  for (const Axis axis : kAxes) {
    if (a.at(axis).calls != b.at(axis).calls) return false;
    if (a.at(axis).bytes_sent != b.at(axis).bytes_sent) return false;
  }
  return true;
}

void ExpectTraffic(const StepCase& c) {
  SCOPED_TRACE(testing::Message() << c.model << " " << ToString(c.mesh) << " remat "
                                  << int(c.remat));
  const ModelConfig& config = TestSource(c.model)->config;
  const std::vector<Traffic> counted = CountedOn(c);
  for (int64_t rank = 0; rank < c.mesh.size(); ++rank) {
    const Traffic expected = Arithmetic(c, config, rank).Step();
    for (const Axis axis : kAxes) {
      EXPECT_EQ(counted[rank].at(axis).calls, expected.at(axis).calls)
          << kAxisNames[int(axis)] << " rank " << rank;
      EXPECT_EQ(counted[rank].at(axis).bytes_sent, expected.at(axis).bytes_sent)
          << kAxisNames[int(axis)] << " rank " << rank;
    }
  }
}

// One KV head held by two ranks of two; a tied head, one KV head held by all.
TEST(TrainerTrafficTest, EqualsTheFormulasOnEveryAxis) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny"}) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}, MeshShape{1, 2, 1},
                                 MeshShape{1, 1, 2}, MeshShape{2, 2, 1}, MeshShape{1, 3, 2}}) {
      for (const Remat remat : {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock}) {
        ExpectTraffic({model, mesh, remat});
      }
    }
  }
  ExpectTraffic({"random:tiny-gqa", {2, 2, 2}, Remat::kAttentionOutput});
  ExpectTraffic({"random:tiny-gqa", {1, 1, 3}, Remat::kBlock});
}

TEST(TrainerTrafficTest, PrefetchMovesNoByteMoreAndBf16HalfOfTheWeights) {
  StepCase c{"random:tiny-gqa", {2, 2, 1}, Remat::kBlock};
  c.prefetch = false;
  ExpectTraffic(c);
  c.compute = Compute::kBF16;
  ExpectTraffic(c);
  // Control: the arithmetic tells apart what it should.
  const ModelConfig& config = TestSource(c.model)->config;
  const std::vector<Traffic> narrow = CountedOn(c);
  StepCase other = c;
  other.compute = Compute::kF32;
  EXPECT_FALSE(Same(narrow[0], Arithmetic(other, config, 0).Step()));
  other = c;
  other.remat = Remat::kAttentionOutput;
  EXPECT_FALSE(Same(narrow[0], Arithmetic(other, config, 0).Step()));
  other = c;
  other.model = "random:palm-tiny";
  EXPECT_FALSE(Same(narrow[0], Arithmetic(other, TestSource(other.model)->config, 0).Step()));
}

}  // namespace
}  // namespace toroid
