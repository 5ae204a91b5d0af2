// What a rank sends and holds in a step of training, as integers: bytes of the ring in every remat
// mode, collectives over `tensor`, bytes saved, block scratch that does not grow. On the counting
// backend and world; that real ranks count the same is tested too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/model/loss.h"
#include "core/model/owed_sums.h"
#include "parallel/counting_communicator.h"
#include "tests/support/gradients_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

const LayoutRule kLayouts[] = {{LayoutRule::Kind::kContiguous, 1},
                               {LayoutRule::Kind::kZigzag, 1},
                               {LayoutRule::Kind::kStriped, 1},
                               {LayoutRule::Kind::kStriped, 4}};
const Remat kRemats[] = {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock};

// What one step of GradientRank::Run sent and saved.
struct Step {
  std::string name;
  int64_t layer = -1;
  CommCounters tensor, ring;
  int64_t saved = 0;
};

CommCounters operator-(const CommCounters& a, const CommCounters& b) {
  return {a.bytes_sent - b.bytes_sent, a.calls - b.calls};
}

struct Counted {
  std::vector<Step> steps;
  int64_t block_scratch = 0, scratch = 0;
  const Step& Of(const std::string& name, int64_t layer = -1) const {
    for (const Step& step : steps) {
      if (step.name == name && step.layer == layer) return step;
    }
    ADD_FAILURE() << name << " " << layer;
    return steps.front();
  }
};

Counted CountedOn(const GradientCase& c, Backend& ops, Mesh& mesh, const ReferenceParams* params) {
  Counted counted;
  GradientRank rank(c, params, ops, mesh);
  CommCounters tensor = mesh.tensor().counters(), ring = mesh.ring().counters();
  int64_t saved = 0;
  rank.Run([&](const std::string& name, int64_t layer) {
    counted.steps.push_back({name, layer, mesh.tensor().counters() - tensor,
                             mesh.ring().counters() - ring, rank.saved().used() - saved});
    tensor = mesh.tensor().counters(), ring = mesh.ring().counters();
    saved = rank.saved().used();
  });
  counted.block_scratch = rank.scratch().block_peak();
  counted.scratch = rank.scratch().peak();
  return counted;
}

Counted CountedOn(const GradientCase& c, int rank) {
  const auto ops = NewCountingBackend(c.type);
  Mesh mesh(NewCountingWorld(rank, int(c.mesh.size())), c.mesh);
  return CountedOn(c, *ops, mesh, nullptr);
}

int64_t KvHeads(const GradientCase& c, int64_t tensor_rank) {
  return HeadLayout(c.config.query_heads, c.config.kv_heads, tensor_rank, c.mesh.tensor).kv_count();
}

// --- the ring

// Shifts of the rounds that are not left out, found pair by pair, for one document.
std::vector<int64_t> KeptShifts(const GradientCase& c, const TokenLayout& tokens, int64_t layer) {
  const int64_t T = c.packs[0][0], R = c.mesh.ring, window = c.config.window(layer);
  std::vector<bool> kept(R, false);
  kept[0] = true;
  for (int64_t q = 0; q < T; ++q) {
    for (int64_t k = window > 0 ? std::max<int64_t>(0, q - window + 1) : 0; k <= q; ++k) {
      kept[(tokens.RingOwner(0, q) - tokens.RingOwner(0, k) + R) % R] = true;
    }
  }
  std::vector<int64_t> shifts;
  for (int64_t shift = 0; shift < R; ++shift) {
    if (kept[shift]) shifts.push_back(shift);
  }
  return shifts;
}

void ExpectRingBytes(GradientCase c) {
  const TokenLayout tokens = TokenLayout::Packed(c.layout, c.packs, 1, c.mesh.ring);
  const int64_t element = c.type == DType::kF64 ? 8 : 4;
  const int64_t kv_element = c.kv_dtype == DType::kBF16 ? 2 : element;
  for (int64_t rank = 0; rank < c.mesh.size(); ++rank) {
    const int64_t r = rank / c.mesh.tensor, R = c.mesh.ring;
    const int64_t row = 2 * KvHeads(c, rank % c.mesh.tensor) * c.config.head_dim;
    for (Remat remat : kRemats) {
      c.remat = remat;
      SCOPED_TRACE(ToString(c) + ", rank " + std::to_string(rank));
      const Counted counted = CountedOn(c, int(rank));
      for (int64_t layer = 0; layer < c.config.layers; ++layer) {
        const std::vector<int64_t> kept = KeptShifts(c, tokens, layer);
        int64_t kv = 0, dkv = 0;
        for (int64_t shift : kept) {
          const int64_t block = tokens.count(0, (r - shift + R) % R) * row;
          if (shift != kept.back()) kv += block * kv_element;  // the last one held stays
          if (kept.size() > 1) dkv += block * element;         // after the last round it goes home
        }
        EXPECT_EQ(counted.Of("forward", layer).ring.bytes_sent, kv);
        EXPECT_EQ(counted.Of("backward", layer).ring.bytes_sent,
                  kv + dkv + (remat == Remat::kBlock ? kv : 0));
      }
    }
  }
}

TEST(TrainingRingBytesTest, EqualTheFormulaForEveryRingLayoutAndRemat) {
  for (int64_t ring = 1; ring <= 8; ++ring) {
    for (const LayoutRule& layout : kLayouts) {
      for (int64_t tokens : {1, 3, 83}) {
        ExpectRingBytes({.config = TinyConfig(),
                         .mesh = {1, ring, 1},
                         .layout = layout,
                         .packs = {{tokens}},
                         .type = DType::kF32});
      }
    }
  }
}

TEST(TrainingRingBytesTest, SharedHeadsWindowsAndNarrowKv) {
  ModelConfig windows = TinyConfig();
  windows.windows = {8, 24};
  for (const LayoutRule& layout : kLayouts) {
    ExpectRingBytes({.config = windows, .mesh = {1, 5, 1}, .layout = layout, .packs = {{83}}});
    ExpectRingBytes({.config = windows,
                     .mesh = {1, 3, 3},
                     .layout = layout,
                     .packs = {{41}},
                     .type = DType::kF32,
                     .kv_dtype = DType::kBF16});
  }
  // Negative control: without its windows, and with wide KV, a rank sends another number.
  GradientCase c{.config = windows,
                 .mesh = {1, 5, 1},
                 .layout = kLayouts[0],
                 .packs = {{83}},
                 .type = DType::kF32,
                 .kv_dtype = DType::kBF16};
  const int64_t sent = CountedOn(c, 0).Of("backward", 0).ring.bytes_sent;
  c.kv_dtype = DType::kF64;
  EXPECT_GT(CountedOn(c, 0).Of("backward", 0).ring.bytes_sent, sent);
  c.kv_dtype = DType::kBF16, c.config.windows.clear();
  EXPECT_GT(CountedOn(c, 0).Of("backward", 0).ring.bytes_sent, sent);
}

// No round left out: R - 1 blocks of KV, R of dKV, in as many calls.
TEST(TrainingRingBytesTest, WholeRounds) {
  for (int64_t R = 2; R <= 8; ++R) {
    GradientCase c{.config = TinyConfig(), .mesh = {1, R, 1}, .packs = {{40 * R}}};
    const int64_t block = 2 * 40 * c.config.kv_heads * c.config.head_dim * 8;
    for (Remat remat : kRemats) {
      c.remat = remat;
      const Counted counted = CountedOn(c, 0);
      EXPECT_EQ(counted.Of("forward", 1).ring.bytes_sent, (R - 1) * block);
      EXPECT_EQ(counted.Of("forward", 1).ring.calls, R - 1);
      const int64_t forwards = remat == Remat::kBlock ? 2 : 1;  // and one backward of R dKV
      EXPECT_EQ(counted.Of("backward", 1).ring.bytes_sent, (forwards * (R - 1) + R) * block);
      EXPECT_EQ(counted.Of("backward", 1).ring.calls, forwards * (R - 1) + R);
    }
  }
}

// --- the axis tensor

TEST(TrainingCollectivesTest, OverTensorAreAsManyWhateverTheBlocks) {
  for (int64_t n : {2, 3}) {
    for (Remat remat : kRemats) {
      for (int64_t block : {512, 4}) {
        const GradientCase c{.config = TinyConfig(),
                             .mesh = {1, 1, n},
                             .remat = remat,
                             .packs = {{29}},
                             .token_block = block};
        SCOPED_TRACE(ToString(c));
        const int64_t one = (n - 1) * ((29 + n - 1) / n) * c.config.dim * 8;  // AllGather of u D
        // A gather of each a again; kBlock also sums what attention adds to x.
        const int64_t again = remat == Remat::kNone ? 0 : remat == Remat::kBlock ? 3 : 2;
        for (int rank = 0; rank < n; ++rank) {
          const Counted counted = CountedOn(c, rank);
          for (int64_t layer : {0, 1}) {
            EXPECT_EQ(counted.Of("forward", layer).tensor.calls, 4);
            EXPECT_EQ(counted.Of("forward", layer).tensor.bytes_sent, 4 * one);
            EXPECT_EQ(counted.Of("backward", layer).tensor.calls, 4 + again);
            EXPECT_EQ(counted.Of("backward", layer).tensor.bytes_sent, (4 + again) * one);
            EXPECT_EQ(counted.Of("owed", layer).tensor.calls, 1);
          }
          EXPECT_EQ(counted.Of("embed").tensor.calls, 1);
          // AllGather of the last norm, ReduceScatter of its gradient, statistics of each block.
          EXPECT_EQ(counted.Of("loss").tensor.calls, 2 + (29 + block - 1) / block);
          EXPECT_EQ(counted.Of("ends").tensor.calls, 2);  // dx gathered, the final gain
        }
      }
    }
  }
}

TEST(TrainingCollectivesTest, OwedSumsAreGainsBiasesAndSharedHeads) {
  ModelConfig config = TinyConfig();  // 6 query heads, 2 KV heads
  const auto owed = [&](int64_t n) {
    std::vector<ParamSpec> layer;
    for (const ParamSpec& spec : ParamTable(config)) {
      if (spec.layer == 1) layer.push_back(spec);
    }
    const int64_t elements = OwedElements(config, layer, n);
    const GradientCase c{.config = config, .mesh = {1, 1, n}, .packs = {{9}}};
    const Counted counted = CountedOn(c, int(n - 1));
    EXPECT_EQ(counted.Of("owed", 1).tensor.bytes_sent, 2 * (n - 1) * elements * 8 / n);
    return elements;
  };
  const int64_t D = config.dim, K = config.head_dim;
  EXPECT_EQ(owed(1), 0);
  EXPECT_EQ(owed(2), 2 * D);                  // 3 + 3 query heads: each rank has its KV head
  EXPECT_EQ(owed(3), 2 * D + 2 * 2 * K * D);  // 2 + 2 + 2: the middle rank reads both
  EXPECT_EQ(owed(4), 2 * D + 2 * 2 * K * D);  // 1 + 2 + 1 + 2
  config.qkv_bias = config.output_bias = config.qk_norm = true;
  EXPECT_EQ(owed(2), 3 * D + 2 * K);
  EXPECT_EQ(owed(3), 3 * D + 2 * K + 2 * 2 * K * (D + 1));
}

// --- memory

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

TEST(TrainingMemoryTest, SavedIsTheTable) {
  for (int64_t n : {1, 3}) {
    for (DType kv_type : {DType::kF32, DType::kBF16}) {
      for (Remat remat : kRemats) {
        const GradientCase c{.config = TinyConfig(),
                             .mesh = {1, 2, n},
                             .remat = remat,
                             .packs = {{77}},
                             .type = DType::kF32,
                             .kv_dtype = kv_type};
        for (int rank = 0; rank < c.mesh.size(); ++rank) {
          const int64_t t = TokenLayout::Packed(c.layout, c.packs, 1, 2).count(0, rank / n);
          const int64_t u = (t + n - 1) / n, D = c.config.dim, K = c.config.head_dim;
          const int64_t h = c.config.query_heads / n, g = KvHeads(c, rank % n);
          const int64_t f = ParamLayout(c.config, rank % n, n).ffn().size();
          int64_t bytes = Aligned(4 * u * D);
          if (remat != Remat::kBlock) {
            bytes += Aligned(4 * u * D) + Aligned(4 * t * h * K) + Aligned(4 * t * h);
          }
          if (remat == Remat::kNone) {
            bytes +=
                Aligned(4 * t * h * K) + Aligned((kv_type == DType::kF32 ? 4 : 2) * 2 * t * g * K);
            bytes += 2 * Aligned(4 * n * u * D) + 2 * Aligned(4 * t * f);
          }
          const Counted counted = CountedOn(c, rank);
          for (int64_t layer : {0, 1}) EXPECT_EQ(counted.Of("forward", layer).saved, bytes);
        }
      }
    }
  }
}

double Slope(const std::vector<double>& x, const std::vector<double>& y) {
  double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / double(x.size());
    mean_y += std::log(y[i]) / double(x.size());
  }
  for (size_t i = 0; i < x.size(); ++i) {
    xy += (std::log(x[i]) - mean_x) * (std::log(y[i]) - mean_y);
    xx += (std::log(x[i]) - mean_x) * (std::log(x[i]) - mean_x);
  }
  return xy / xx;
}

void ExpectBlockScratchDoesNotGrow(const ModelConfig& config, MeshShape mesh, Remat remat) {
  GradientCase c{.config = config, .mesh = mesh, .remat = remat};
  c.config.context = 1 << 20;
  std::vector<double> lengths, block, total;
  for (int i = 0; i <= 5; ++i) {
    c.packs = {{(1024 * mesh.ring) << i}};
    const Counted counted = CountedOn(c, int(mesh.size()) - 1);
    lengths.push_back(double(c.packs[0][0]));
    block.push_back(double(counted.block_scratch));
    total.push_back(double(counted.scratch));
  }
  SCOPED_TRACE(config.architecture + " " + ToString(c));
  EXPECT_LE(std::abs(Slope(lengths, block)), 0.05);
  EXPECT_GT(Slope(lengths, total), 0.5);  // negative control: what is as long as the text
}

TEST(TrainingMemoryTest, BlockScratchDoesNotGrowOverFiveDoublings) {
  for (const ModelConfig& config : {TinyConfig(), TinyPalm(), TinyGpt()}) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 1}, MeshShape{1, 2, 3}}) {
      for (Remat remat : kRemats) ExpectBlockScratchDoesNotGrow(config, mesh, remat);
    }
  }
}

// Liu et al. 2310.01889: at 1,024 tokens a rank the ring may be of any size. One rank alone has no
// blocks that travel.
TEST(TrainingMemoryTest, ALongerRingNeedsNoMoreOfARank) {
  for (Remat remat : kRemats) {
    const auto peak = [&](int64_t ring, int64_t tokens) {
      const Counted counted = CountedOn(
          {.config = TinyConfig(), .mesh = {1, ring, 1}, .remat = remat, .packs = {{tokens}}}, 0);
      int64_t saved = 0, most = 0;
      for (const Step& step : counted.steps) most = std::max(most, saved += step.saved);
      return double(counted.scratch + most);
    };
    const double two = peak(2, 2 * 1024);
    EXPECT_LE(peak(1, 1024), two);
    for (int64_t ring : {4, 8}) EXPECT_NEAR(peak(ring, ring * 1024) / two, 1, 0.02) << ring;
    EXPECT_GT(peak(4, 2 * 4 * 1024) / two, 1.5);  // control: more tokens a rank
  }
}

TEST(TrainingMemoryTest, LogitsAreABlockOfAnyVocabulary) {
  GradientCase c{.config = TinyConfig(), .packs = {{4096}}, .type = DType::kF32};
  c.config.vocab = 256000;
  const Counted counted = CountedOn(c, 0);
  EXPECT_LE(counted.block_scratch, (int64_t{1} << 26) + (1 << 20));
  EXPECT_EQ(counted.Of("loss").tensor.calls, 0);
}

// --- real ranks count the same

TEST(TrainingCountersTest, RealRanksCountTheSame) {
  for (Remat remat : kRemats) {
    const GradientCase c{
        .config = TinyConfig(), .mesh = {1, 3, 2}, .remat = remat, .packs = {{31}}};
    const ReferenceParams params = RandomParams(c.config);
    RunOnMesh(c.mesh, [&](Mesh& mesh) {
      const auto ops = NewCpuBackend(c.type, 1);
      const Counted real = CountedOn(c, *ops, mesh, &params);
      const Counted foreseen = CountedOn(c, int(mesh.rank()));
      ASSERT_EQ(real.steps.size(), foreseen.steps.size());
      for (size_t i = 0; i < real.steps.size(); ++i) {
        const Step &a = real.steps[i], &b = foreseen.steps[i];
        EXPECT_EQ(a.name, b.name);
        EXPECT_EQ(a.tensor.bytes_sent, b.tensor.bytes_sent) << a.name;
        EXPECT_EQ(a.tensor.calls, b.tensor.calls) << a.name;
        EXPECT_EQ(a.ring.bytes_sent, b.ring.bytes_sent) << a.name;
        EXPECT_EQ(a.ring.calls, b.ring.calls) << a.name;
        EXPECT_EQ(a.saved, b.saved) << a.name;
      }
      EXPECT_EQ(real.scratch, foreseen.scratch);
      EXPECT_EQ(real.block_scratch, foreseen.block_scratch);
    });
  }
}

}  // namespace
}  // namespace toroid
