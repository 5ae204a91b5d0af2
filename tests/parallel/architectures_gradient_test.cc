// Gradients of PaLM and GPT blocks: the reference against central differences, one rank against
// its own loss's differences, every mesh, remat mode and pack against the reference; and what a
// layer of each sends over `tensor`.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "parallel/counting_communicator.h"
#include "tests/support/all_close.h"
#include "tests/support/differences.h"
#include "tests/support/gradients_on_mesh.h"

namespace toroid {
namespace {

constexpr double kTolerance = Tolerance<double>::kGradient;
const Remat kRemats[] = {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock};

// The two, and their choices in other company: a parallel block with biases, LayerNorm, GELU and a
// head of its own; a serial one with LayerNorm, head norms, RoPE and a scale of the logits.
std::vector<ModelConfig> Architectures() {
  ModelConfig parallel = TinyGpt(), serial = TinyPalm();
  parallel.parallel_block = true, parallel.tied_embeddings = false, parallel.kv_heads = 2;
  serial.parallel_block = false, serial.norm = NormKind::kLayer, serial.qk_norm = true;
  return {TinyPalm(), TinyGpt(), parallel, serial};
}

// Without RoPE a bias of K adds q . b to all scores of a query, which softmax does not see: its
// gradient is exactly zero, and rounding alone is no gradient to compare. Left out of `d`, after a
// look at how small it is.
ReferenceParams WithoutZeros(const ModelConfig& config, ReferenceParams d) {
  if (config.positions == PositionKind::kRope) return d;
  double largest = 0, zero = 0;
  for (const auto& [name, values] : d) {
    const bool is_zero = name.find("k_proj.bias") != std::string::npos;
    double& most = is_zero ? zero : largest;
    for (const double v : values) most = std::max(most, std::abs(v));
  }
  EXPECT_LE(zero, kTolerance * largest);
  std::erase_if(
      d, [](const auto& item) { return item.first.find("k_proj.bias") != std::string::npos; });
  return d;
}

void ExpectGradients(const GradientCase& c) {
  SCOPED_TRACE(c.config.architecture + " " + ToString(c));
  const ReferenceParams params = RandomParams(c.config);
  const MeshGradients made = GradientsOn(c, params);
  const ReferenceGradients expected = ReferenceOn(c, params);
  std::string worst;
  EXPECT_LE(
      GradientError(WithoutZeros(c.config, made.d), WithoutZeros(c.config, expected.d), &worst),
      kTolerance)
      << worst;
  EXPECT_LE(made.replica_error, kTolerance);
  EXPECT_NEAR(made.loss, expected.loss, kTolerance * std::abs(expected.loss));
}

// The derivative of loss() by an element.
template <typename Loss>
double Difference(double& element, const Loss& loss) {
  return CentralDifference(element, 1e-3, loss);
}

TEST(ArchitectureGradientTest, TheReferenceIsTheDifferencesOfItsLoss) {
  for (const ModelConfig& config : Architectures()) {
    const GradientCase c{.config = config, .packs = {{11}}};
    ReferenceParams params = RandomParams(config);
    const Document document = DocumentsOf(c)[0];
    ReferenceInput input;
    input.ids = document.ids, input.inv_freq = {1, 0.3, 0.1, 0.03};
    const ReferenceGradients made = ReferenceBackward(config, params, input, document.loss);
    double scale = 0;
    for (const auto& [name, values] : made.d) {
      for (const double v : values) scale = std::max(scale, std::abs(v));
    }
    for (auto& [name, values] : params) {
      const size_t step = name == "model.embed_positions.weight" ? 37 : 1 + values.size() / 4;
      for (size_t i = 0; i < values.size(); i += step) {
        const double difference = Difference(
            values[i], [&] { return ReferenceLossOf(config, params, input, document.loss); });
        EXPECT_NEAR(made.d.at(name)[i], difference, 1e-8 * scale) << name << " " << i;
      }
    }
  }
}

TEST(ArchitectureGradientTest, OneRankIsTheDifferencesOfItsOwnLoss) {
  for (const ModelConfig& config : {TinyPalm(), TinyGpt()}) {
    const GradientCase c{.config = config, .packs = {{9}}};
    ReferenceParams params = RandomParams(config);
    const MeshGradients made = GradientsOn(c, params);
    for (auto& [name, values] : params) {
      const size_t i = name == "model.embed_positions.weight" ? 100 : values.size() / 3;
      const double difference = Difference(values[i], [&] { return GradientsOn(c, params).loss; });
      EXPECT_NEAR(made.d.at(name)[i], difference, 1e-8) << name;
    }
  }
}

TEST(ArchitectureGradientTest, OneRankEveryLengthRematAndTokenBlock) {
  for (const ModelConfig& config : Architectures()) {
    for (const int64_t length : {1, 7, 33}) {
      for (const Remat remat : kRemats) {
        ExpectGradients({.config = config, .remat = remat, .packs = {{length}}});
        ExpectGradients({.config = config, .remat = remat, .packs = {{length}}, .token_block = 5});
      }
    }
  }
}

TEST(ArchitectureGradientTest, EveryMeshAndRemat) {
  for (const ModelConfig& config : Architectures()) {
    for (const MeshShape mesh : {MeshShape{1, 1, 2}, MeshShape{1, 1, 3}, MeshShape{1, 1, 4},
                                 MeshShape{1, 2, 1}, MeshShape{1, 3, 1}, MeshShape{1, 3, 2},
                                 MeshShape{1, 2, 4}, MeshShape{1, 8, 1}, MeshShape{2, 1, 3}}) {
      for (const Remat remat : kRemats) {
        ExpectGradients(
            {.config = config, .mesh = mesh, .remat = remat, .packs = {{33}, {1, 9, 4}, {2}}});
      }
    }
  }
}

// Negative controls: sums over `tensor` not paid, and each choice of the architecture left out.
TEST(ArchitectureGradientTest, WhatIsLeftOutShows) {
  for (const ModelConfig& config : Architectures()) {
    for (const int64_t tensor : {3, 4}) {
      GradientCase c{.config = config, .mesh = {1, 1, tensor}};
      const ReferenceParams params = RandomParams(config);
      const ReferenceParams made = WithoutZeros(config, GradientsOn(c, params).d);
      const ReferenceParams expected = WithoutZeros(config, ReferenceOn(c, params).d);
      EXPECT_LE(GradientError(made, expected), kTolerance);
      c.pay_owed = false;
      EXPECT_GT(GradientError(GradientsOn(c, params).d, expected), 1e-3);
    }
  }
  const auto error = [](const ModelConfig& config, const ModelConfig& other) {
    const ReferenceParams params = RandomParams(config);
    return GradientError(GradientsOn({.config = config}, params).d,
                         ReferenceOn({.config = other}, params).d);
  };
  ModelConfig other = TinyPalm();
  other.logit_scale = 1;
  EXPECT_GT(error(TinyPalm(), other), 1e-2);
  other = TinyGpt();
  other.windows = {0, 6};
  EXPECT_GT(error(TinyGpt(), other), 1e-4);
  other = TinyGpt();
  other.norm_epsilon = 1e-3;
  EXPECT_GT(error(TinyGpt(), other), 1e-6);
}

// With dropout: one rank against the differences of its own loss, every mesh and remat mode against
// one rank; another step, and tokens numbered from a rank's own zero, show.
TEST(ArchitectureGradientTest, DropoutIsTheSameOnEveryMesh) {
  for (const ModelConfig& config : {TinyPalm(), TinyGpt()}) {
    GradientCase c{.config = config, .packs = {{19}, {1, 9, 4}}, .dropout = 0.3};
    ReferenceParams params = RandomParams(config);
    const MeshGradients one = GradientsOn(c, params);
    for (auto& [name, values] : params) {
      const size_t i = name == "model.embed_positions.weight" ? 100 : values.size() / 3;
      const double difference = Difference(values[i], [&] { return GradientsOn(c, params).loss; });
      EXPECT_NEAR(one.d.at(name)[i], difference, 1e-8) << name;
    }
    const ReferenceParams expected = WithoutZeros(config, one.d);
    for (const MeshShape mesh :
         {MeshShape{1, 1, 3}, MeshShape{1, 2, 1}, MeshShape{2, 1, 1}, MeshShape{2, 3, 2}}) {
      for (const Remat remat : kRemats) {
        c.mesh = mesh, c.remat = remat;
        const MeshGradients made = GradientsOn(c, params);
        EXPECT_LE(GradientError(WithoutZeros(config, made.d), expected), kTolerance) << ToString(c);
        EXPECT_NEAR(made.loss, one.loss, kTolerance * std::abs(one.loss));
      }
    }
    c.break_pass = [](Pass& pass) {
      int64_t* numbers = pass.dropout.tokens_u.as<int64_t>();
      for (int64_t i = 0; i < pass.residual.share(); ++i) numbers[i] = i;
    };
    EXPECT_GT(GradientError(GradientsOn(c, params).d, expected), 1e-3);
    c.break_pass = nullptr, c.step = 4;
    EXPECT_GT(GradientError(GradientsOn(c, params).d, expected), 1e-3);
    c.step = 3, c.dropout = 0;
    EXPECT_GT(GradientError(GradientsOn(c, params).d, expected), 1e-3);
  }
}

// What is saved: the table in block.h, by its notes on parallel blocks and GELU.
TEST(ArchitectureMemoryTest, SavedIsTheTable) {
  const auto aligned = [](int64_t elements) { return (4 * elements + 63) / 64 * 64; };
  for (const ModelConfig& config : Architectures()) {
    for (const Remat remat : kRemats) {
      const GradientCase c{.config = config,
                           .mesh = {1, 2, 3},
                           .remat = remat,
                           .packs = {{35}},
                           .type = DType::kF32};
      for (int rank = 0; rank < c.mesh.size(); ++rank) {
        const auto ops = NewCountingBackend(c.type);
        Mesh mesh(NewCountingWorld(rank, int(c.mesh.size())), c.mesh);
        GradientRank counted(c, nullptr, *ops, mesh);
        const ParamLayout& layout = counted.layout();
        const int64_t t = counted.tokens().count(0, mesh.ring_rank()), u = (t + 2) / 3;
        const int64_t h = layout.heads().query_count(), g = layout.heads().kv_count();
        const int64_t D = config.dim, K = config.head_dim, f = layout.ffn().size();
        const int64_t halves = config.parallel_block ? 1 : 2;
        int64_t bytes = aligned(u * D);
        if (remat != Remat::kBlock) {
          bytes += (halves - 1) * aligned(u * D) + aligned(t * h * K) + aligned(t * h);
        }
        if (remat == Remat::kNone) {
          const int64_t hidden = config.activation == Activation::kGelu ? 1 : 2;
          bytes += aligned(t * h * K) + aligned(2 * t * g * K) + halves * aligned(3 * u * D) +
                   hidden * aligned(t * f);
        }
        int64_t before = 0;
        counted.Run([&](const std::string& step, int64_t) {
          if (step == "forward") {
            EXPECT_EQ(counted.saved().used() - before, bytes);
          }
          before = counted.saved().used();
        });
      }
    }
  }
}

// Per layer over `tensor`: a parallel block gathers once and sums once, forward and backward; a
// serial one twice each. Recomputation gathers each a again (a serial kBlock also sums the first
// half). Whatever the number of token blocks.
TEST(ArchitectureCollectivesTest, AParallelBlockHasHalf) {
  for (const ModelConfig& config : Architectures()) {
    const int64_t halves = config.parallel_block ? 1 : 2;
    for (const int64_t n : {2, 3}) {
      for (const Remat remat : kRemats) {
        for (const int64_t block : {512, 4}) {
          const GradientCase c{.config = config,
                               .mesh = {1, 1, n},
                               .remat = remat,
                               .packs = {{29}},
                               .token_block = block};
          SCOPED_TRACE(config.architecture + " " + ToString(c));
          const int64_t one = (n - 1) * ((29 + n - 1) / n) * config.dim * 8;  // of u D
          int64_t again = remat == Remat::kNone ? 0 : halves;
          if (remat == Remat::kBlock && !config.parallel_block) ++again;
          for (int rank = 0; rank < n; ++rank) {
            const auto ops = NewCountingBackend(c.type);
            Mesh mesh(NewCountingWorld(rank, int(n)), c.mesh);
            GradientRank counted(c, nullptr, *ops, mesh);
            CommCounters before;
            counted.Run([&](const std::string& step, int64_t) {
              const CommCounters now = mesh.tensor().counters();
              const int64_t calls = now.calls - before.calls;
              const int64_t bytes = now.bytes_sent - before.bytes_sent;
              if (step == "forward") {
                EXPECT_EQ(calls, 2 * halves);
                EXPECT_EQ(bytes, 2 * halves * one);
              } else if (step == "backward") {
                EXPECT_EQ(calls, 2 * halves + again);
                EXPECT_EQ(bytes, (2 * halves + again) * one);
              } else if (step == "owed") {
                EXPECT_EQ(calls, 1);
              } else if (step == "embed") {
                EXPECT_EQ(calls, 1);  // tokens and positions share a sum
              }
              before = now;
            });
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace toroid
