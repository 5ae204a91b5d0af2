// Gradients of a whole small model: the reference against central differences of its own forward,
// and every mesh, layout, architecture and remat mode against the reference, in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/reference/model_backward.h"
#include "tests/support/all_close.h"
#include "tests/support/differences.h"
#include "tests/support/gradients_on_mesh.h"

namespace toroid {
namespace {

constexpr double kTolerance = Tolerance<double>::kGradient;
const LayoutRule kContiguous{LayoutRule::Kind::kContiguous, 1};
const LayoutRule kZigzag{LayoutRule::Kind::kZigzag, 1};
const LayoutRule kStriped1{LayoutRule::Kind::kStriped, 1};
const LayoutRule kStriped4{LayoutRule::Kind::kStriped, 4};
const LayoutRule kLayouts[] = {kContiguous, kZigzag, kStriped1, kStriped4};
const Remat kRemats[] = {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock};

// GQA; MHA with a window; MQA, tied; all biases, windows; head norms, tied.
std::vector<ModelConfig> Architectures() {
  std::vector<ModelConfig> all(5, TinyConfig());
  all[1].kv_heads = 6, all[1].windows = {0, 5};
  all[2].kv_heads = 1, all[2].tied_embeddings = true;
  all[3].qkv_bias = all[3].output_bias = all[3].mlp_bias = true, all[3].windows = {4, 9};
  all[4].qk_norm = all[4].tied_embeddings = true;
  return all;
}

void ExpectGradients(const GradientCase& c, double tolerance = kTolerance) {
  SCOPED_TRACE(ToString(c));
  const ReferenceParams params = RandomParams(c.config);
  const MeshGradients made = GradientsOn(c, params);
  const ReferenceGradients expected = ReferenceOn(c, params);
  std::string worst;
  EXPECT_LE(GradientError(made.d, expected.d, &worst), tolerance) << worst;
  EXPECT_LE(made.replica_error, tolerance);
  EXPECT_NEAR(made.loss, expected.loss, tolerance * std::abs(expected.loss));
}

double ErrorOf(const GradientCase& c, std::string* worst = nullptr) {
  const ReferenceParams params = RandomParams(c.config);
  return GradientError(GradientsOn(c, params).d, ReferenceOn(c, params).d, worst);
}

// The derivative of loss() by an element.
template <typename Loss>
double Difference(double& element, const Loss& loss) {
  return CentralDifference(element, 1e-3, loss);
}

// --- the reference

TEST(ReferenceBackwardTest, EqualsCentralDifferences) {
  for (const ModelConfig& config : Architectures()) {
    GradientCase c{.config = config, .packs = {{11}}};
    ReferenceParams params = RandomParams(config);
    const Document document = DocumentsOf(c)[0];
    ReferenceInput input;
    input.ids = document.ids, input.inv_freq = {1, 0.3, 0.1, 0.03};
    const ReferenceGradients made = ReferenceBackward(config, params, input, document.loss);
    EXPECT_DOUBLE_EQ(made.loss, ReferenceLossOf(config, params, input, document.loss));
    double scale = 0;
    for (auto& [name, values] : params) {
      for (double v : made.d.at(name)) scale = std::max(scale, std::abs(v));
    }
    for (auto& [name, values] : params) {
      for (size_t i = 0; i < values.size(); i += 1 + values.size() / 4) {
        const double difference = Difference(
            values[i], [&] { return ReferenceLossOf(config, params, input, document.loss); });
        EXPECT_NEAR(made.d.at(name)[i], difference, 1e-8 * scale) << name << " " << i;
      }
    }
  }
}

// --- one rank

TEST(GradientTest, OneRankEqualsCentralDifferencesOfItsOwnLoss) {
  GradientCase c{.config = Architectures()[4], .packs = {{9}}};
  ReferenceParams params = RandomParams(c.config);
  const MeshGradients made = GradientsOn(c, params);
  for (auto& [name, values] : params) {
    const size_t i = values.size() / 3;
    const double difference = Difference(values[i], [&] { return GradientsOn(c, params).loss; });
    EXPECT_NEAR(made.d.at(name)[i], difference, 1e-8) << name;
  }
}

TEST(GradientTest, OneRankEveryArchitectureLengthAndRemat) {
  for (const ModelConfig& config : Architectures()) {
    for (int64_t length : {1, 7, 33}) {
      for (Remat remat : kRemats) {
        ExpectGradients({.config = config, .remat = remat, .packs = {{length}}});
      }
    }
  }
}

TEST(GradientTest, BlocksOfTokensAddUp) {
  for (int64_t block : {1, 5, 32}) {
    for (Remat remat : kRemats) {
      ExpectGradients({.config = Architectures()[3], .remat = remat, .token_block = block});
    }
  }
}

// --- meshes

TEST(GradientTest, EveryMeshAndArchitecture) {
  int64_t turn = 0;
  for (const ModelConfig& config : Architectures()) {
    for (int64_t ring : {1, 2, 3, 4}) {
      for (int64_t tensor : {1, 2, 3}) {
        ExpectGradients(
            {.config = config, .mesh = {1, ring, tensor}, .remat = kRemats[turn++ % 3]});
      }
    }
  }
}

// Lengths that leave some ranks of the ring with nothing, and that none divides.
TEST(GradientTest, RingsOfSixToEight) {
  int64_t turn = 0;
  for (const ModelConfig& config : {TinyConfig(), Architectures()[3]}) {
    for (const int64_t ring : {6, 7, 8}) {
      for (const LayoutRule& layout : kLayouts) {
        for (const int64_t length : {5, 33}) {
          ExpectGradients({.config = config,
                           .mesh = {1, ring, 1},
                           .layout = layout,
                           .remat = kRemats[turn++ % 3],
                           .packs = {{length}}});
        }
      }
    }
  }
  ExpectGradients({.config = TinyConfig(), .mesh = {1, 8, 2}, .packs = {{9, 1, 14}, {17}}});
}

// Six query heads on four ranks: two ranks have one head, two have two; a KV head is read by
// several, and MQA's by all.
TEST(GradientTest, FourRanksOfTensor) {
  for (const ModelConfig& config : Architectures()) {
    for (const MeshShape mesh : {MeshShape{1, 1, 4}, MeshShape{1, 2, 4}}) {
      for (const Remat remat : kRemats) {
        ExpectGradients({.config = config, .mesh = mesh, .remat = remat});
      }
    }
  }
}

TEST(GradientTest, EveryLayoutLengthAndRemat) {
  for (const LayoutRule& layout : kLayouts) {
    for (int64_t length : {1, 7, 33}) {
      for (Remat remat : kRemats) {
        for (const MeshShape mesh : {MeshShape{1, 2, 2}, MeshShape{1, 3, 1}, MeshShape{1, 4, 3}}) {
          ExpectGradients({.config = Architectures()[1],
                           .mesh = mesh,
                           .layout = layout,
                           .remat = remat,
                           .packs = {{length}}});
        }
      }
    }
  }
}

TEST(GradientTest, PacksOfDocumentsOverDataAndRing) {
  for (const LayoutRule& layout : kLayouts) {
    for (const MeshShape mesh : {MeshShape{2, 1, 1}, MeshShape{2, 2, 1}, MeshShape{3, 2, 1},
                                 MeshShape{2, 2, 2}, MeshShape{1, 3, 2}}) {
      ExpectGradients({.config = TinyConfig(),
                       .mesh = mesh,
                       .layout = layout,
                       .remat = Remat::kAttentionOutput,
                       .packs = {{5, 1, 9}, {17}, {2, 2, 12}}});
    }
  }
}

// Six ranks of `tensor`, five query heads of one KV head each, no granule of F on some.
TEST(GradientTest, RanksWithNextToNothing) {
  ModelConfig config = Architectures()[3];
  config.query_heads = config.kv_heads = 5, config.ffn = 32, config.vocab = 7;
  for (int64_t tensor : {2, 5}) {
    for (Remat remat : kRemats) {
      ExpectGradients({.config = config, .mesh = {1, 1, tensor}, .remat = remat, .packs = {{3}}});
    }
  }
}

TEST(GradientTest, Float32) {
  for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 2, 2}, MeshShape{1, 3, 1}}) {
    for (Remat remat : kRemats) {
      ExpectGradients({.config = TinyConfig(), .mesh = mesh, .remat = remat, .type = DType::kF32},
                      Tolerance<float>::kGradient);
    }
  }
}

TEST(GradientTest, RematModesHaveTheSameBits) {
  for (const ModelConfig& config : Architectures()) {
    const ReferenceParams params = RandomParams(config);
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{1, 3, 2}}) {
      for (DType kv : {DType::kF64, DType::kBF16}) {
        GradientCase c{.config = config, .mesh = mesh, .kv_dtype = kv, .token_block = 6};
        const MeshGradients none = GradientsOn(c, params);
        for (Remat remat : {Remat::kAttentionOutput, Remat::kBlock}) {
          c.remat = remat;
          const MeshGradients again = GradientsOn(c, params);
          EXPECT_TRUE(again.d == none.d) << ToString(c);
          EXPECT_EQ(again.loss, none.loss);
        }
      }
    }
  }
}

// --- negative controls

TEST(GradientTest, AnUnpaidSumShows) {
  GradientCase c{.config = TinyConfig(), .mesh = {1, 1, 2}};
  c.pay_owed = false;
  EXPECT_GT(ErrorOf(c), 0.1);
  c.config.kv_heads = 1;
  const ReferenceParams params = RandomParams(c.config);
  for (const int64_t tensor : {2, 4}) {
    c.mesh.tensor = tensor;
    EXPECT_GT(GradientsOn(c, params).replica_error, 0.1);
  }
}

TEST(GradientTest, GradientsOfKvThatAreLostShow) {
  GradientCase c{.config = TinyConfig()};
  c.break_pass = [](Pass& pass) {
    pass.attend_backward = [&pass, whole = pass.attend_backward](auto... args) {
      whole(args...);
      const Tensor dkv_2tgK = std::get<sizeof...(args) - 1>(std::tie(args...));
      pass.ops.Fill(pass.s, dkv_2tgK.Rows(0, 1), 0.0);
    };
  };
  for (const int64_t ring : {2, 8}) {
    c.mesh.ring = ring;
    std::string worst;
    EXPECT_GT(ErrorOf(c, &worst), 1e-3);
    EXPECT_NE(worst.find("k_proj"), std::string::npos) << worst;
  }
}

TEST(GradientTest, WhatIsSavedIsRead) {
  const auto error = [](Remat remat, Tensor Block::Saved::*field) {
    GradientCase c{.config = TinyConfig(), .remat = remat};
    c.break_saved = [field](Backend& ops, Stream s, Block::Saved& saved) {
      ops.Scale(s, saved.*field, 1.1);
    };
    return ErrorOf(c);
  };
  EXPECT_GT(error(Remat::kBlock, &Block::Saved::x_uD), 1e-4);
  EXPECT_GT(error(Remat::kAttentionOutput, &Block::Saved::x2_uD), 1e-4);
  EXPECT_GT(error(Remat::kNone, &Block::Saved::mlp_in_tD), 1e-4);
  EXPECT_GT(error(Remat::kNone, &Block::Saved::attention_in_tD), 1e-4);
}

TEST(GradientTest, AnotherWindowAndAnotherZetaShow) {
  GradientCase c{.config = Architectures()[3], .mesh = {1, 2, 1}};
  const ReferenceParams params = RandomParams(c.config);
  const MeshGradients made = GradientsOn(c, params);
  c.config.windows = {4, 10};
  EXPECT_GT(GradientError(made.d, ReferenceOn(c, params).d), 1e-4);
  c.config.windows = {4, 9};
  EXPECT_LE(GradientError(made.d, ReferenceOn(c, params).d), kTolerance);
  c.zeta = 0;
  EXPECT_GT(GradientError(made.d, ReferenceOn(c, params).d), 1e-3);
}

}  // namespace
}  // namespace toroid
