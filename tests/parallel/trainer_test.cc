// Training on meshes of threads: one curve whatever the mesh, exact traffic, nothing lost.
#include "parallel/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// The eight meshes of the 2D scheme, the one of one rank left out: one curve, one set of weights.
const MeshShape kSevenMeshes[] = {{1, 1, 2}, {2, 1, 1}, {1, 2, 1}, {2, 1, 2},
                                  {2, 2, 1}, {1, 2, 2}, {2, 2, 2}};

TEST(TrainerTest, OneCurveOnEightMeshesInFloat64) {
  const Curve one = CurveOf("random:tiny-gqa", Options({1, 1, 1}), 20);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.3);  // it learns
  for (const MeshShape& mesh : kSevenMeshes) {
    SCOPED_TRACE(ToString(mesh));
    const Curve many = CurveOf("random:tiny-gqa", Options(mesh), 20);
    ExpectSameCurve(many, one, 1e-11);
    EXPECT_LT(WorstError(many.weights, one.weights), 1e-11);
  }
}

// Parameters whose gradient is zero but for rounding.
std::set<std::string> WithoutGradient(const std::string& model, const TrainBatch& batch) {
  std::set<std::string> names;
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    auto trainer =
        Trainer::Create(std::move(world), TestSource(model), Options({1, 1, 1}), nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ASSERT_TRUE((*trainer)->Gradient(0, batch).ok());
    const std::vector<double> squares = (*trainer)->store().SquaredSums(Kind::kGradients);
    const double all = std::accumulate(squares.begin(), squares.end(), 0.0);
    for (size_t i = 0; i < squares.size(); ++i) {
      if (squares[i] < 1e-24 * all) names.insert((*trainer)->store().parameter_name(int64_t(i)));
    }
  });
  return names;
}

// PaLM's and GPT's blocks. AdamW makes a gradient of rounding errors as large as any other, so that
// weights without a gradient are not compared: the biases of GPT's keys, which add the same to all
// logits of a query.
TEST(TrainerTest, PalmAndGptAreOneCurveOnEightMeshesInFloat64) {
  const auto batch = [](int64_t step, int64_t vocab) {
    return BatchOf(step, vocab, {{23}, {7, 1, 13}});
  };
  for (const char* model : {"random:palm-tiny", "random:gpt3-tiny"}) {
    const auto source = TestSource(model);
    const std::set<std::string> zero = WithoutGradient(model, batch(0, source->config.vocab));
    std::set<std::string> biases;
    for (int64_t i = 0; source->config.qkv_bias && i < source->config.layers; ++i) {
      biases.insert(absl::StrCat("model.layers.", i, ".self_attn.k_proj.bias"));
    }
    EXPECT_EQ(zero, biases);
    Curve one = CurveOf(model, Options({1, 1, 1}), 20, batch);
    EXPECT_LT(one.losses.back(), one.losses.front() - 0.3);
    for (const std::string& name : zero) one.weights.erase(name);
    for (const MeshShape& mesh : kSevenMeshes) {
      SCOPED_TRACE(std::string(model) + " " + ToString(mesh));
      const Curve many = CurveOf(model, Options(mesh), 20, batch);
      ExpectSameCurve(many, one, 1e-11);
      EXPECT_LT(WorstError(many.weights, one.weights), 1e-11);
    }
  }
}

// Meshes of one axis up to eight ranks, mostly not powers of two, and products of them; no
// length is a multiple of anything, and layouts take turns.
TEST(TrainerTest, OneCurveInFloat32OnTwentyMeshes) {
  const auto batch = [](int64_t step, int64_t vocab) {
    return BatchOf(step, vocab, {{37}, {11, 1, 29}, {23, 8}, {19}});
  };
  const auto options = [](const MeshShape& mesh) { return Options(mesh, Compute::kF32); };
  const Curve one = CurveOf("random:tiny-gqa", options({1, 1, 1}), 20, batch);
  const LayoutRule layouts[] = {{LayoutRule::Kind::kZigzag, 1},
                                {LayoutRule::Kind::kStriped, 1},
                                {LayoutRule::Kind::kContiguous, 1},
                                {LayoutRule::Kind::kStriped, 4}};
  int turn = 0;
  for (const MeshShape mesh :
       {MeshShape{1, 1, 2}, MeshShape{1, 1, 3}, MeshShape{1, 1, 5}, MeshShape{1, 1, 7},
        MeshShape{1, 1, 8}, MeshShape{1, 2, 1}, MeshShape{1, 3, 1}, MeshShape{1, 5, 1},
        MeshShape{1, 7, 1}, MeshShape{1, 8, 1}, MeshShape{3, 1, 1}, MeshShape{5, 1, 1},
        MeshShape{2, 3, 1}, MeshShape{3, 2, 1}, MeshShape{2, 1, 3}, MeshShape{3, 1, 2},
        MeshShape{1, 3, 2}, MeshShape{1, 2, 3}, MeshShape{1, 2, 4}, MeshShape{2, 2, 2}}) {
    TrainOptions many = options(mesh);
    many.layout = layouts[turn++ % 4];
    SCOPED_TRACE(ToString(mesh) + " " + ToString(many.layout));
    const Curve curve = CurveOf("random:tiny-gqa", many, 20, batch);
    ASSERT_EQ(curve.losses.size(), one.losses.size());
    for (size_t i = 0; i < curve.losses.size(); ++i) {
      EXPECT_NEAR(curve.losses[i] / one.losses[i], 1, 1e-5) << "step " << i;
    }
  }
}

// The schedule with the blocks going the other way round: in round i the block of rank
// (ring_rank + shift_i) mod R.
std::vector<Round> OtherWay(const TokenLayout& layout, const AttentionSpec& spec, int64_t data_rank,
                            int64_t ring_rank) {
  std::vector<Round> rounds = Rounds(layout, spec, data_rank, ring_rank);
  if (rounds.size() > 2) std::reverse(rounds.begin() + 1, rounds.end());  // own block first
  const int64_t ring = layout.ring();
  for (size_t i = 0; i < rounds.size(); ++i) {
    rounds[i].moves = i + 1 < rounds.size();
    rounds[i].to = rounds[i].from = rounds[i].recv_tokens = 0;
    if (!rounds[i].moves) continue;
    const int64_t step = (rounds[i].kv_of - rounds[i + 1].kv_of + ring) % ring;
    rounds[i].to = (ring_rank + step) % ring;
    rounds[i].from = (ring_rank + ring - step) % ring;
    rounds[i].recv_tokens = layout.count(data_rank, rounds[i + 1].kv_of);
  }
  return rounds;
}

// (O, LSE) merge in any order, and so do the sums of dK and dV.
TEST(TrainerTest, TheRingTurnsEitherWay) {
  const auto batch = [](int64_t step, int64_t vocab) { return BatchOf(step, vocab); };
  for (const char* model : {"random:tiny-gqa", "random:tiny-mistral"}) {
    for (const MeshShape mesh : {MeshShape{1, 3, 1}, MeshShape{1, 5, 1}, MeshShape{2, 4, 1}}) {
      SCOPED_TRACE(std::string(model) + " " + ToString(mesh));
      const Curve one = CurveOf(model, Options(mesh), 1);
      const Curve other = CurveOf(model, Options(mesh), 1, batch, OtherWay);
      ExpectSameCurve(other, one, 1e-13);
      EXPECT_LT(WorstError(other.weights, one.weights), 1e-11);
      EXPECT_NE(other.weights, one.weights);  // the order of sums was another
    }
  }
}

TEST(TrainerTest, ABatchOfAnotherStepIsSeen) {  // negative control of the comparison above
  const Curve one = CurveOf("random:tiny-gqa", Options({1, 1, 1}), 2);
  const Curve other = CurveOf("random:tiny-gqa", Options({1, 1, 1}), 2,
                              [](int64_t step, int64_t vocab) { return BatchOf(step + 1, vocab); });
  EXPECT_GT(std::abs(other.losses[1] / one.losses[1] - 1), 1e-6);
  EXPECT_GT(WorstError(other.weights, one.weights), 1e-6);
}

TEST(TrainerTest, OneCurveInFloat32OnMeshesOfThreeAndFive) {
  for (const char* model :
       {"random:tiny-mqa", "random:tiny-qwen3", "random:palm-tiny", "random:gpt3-tiny"}) {
    const Curve one = CurveOf(model, Options({1, 1, 1}, Compute::kF32), 5);
    for (const MeshShape mesh : {MeshShape{1, 3, 1}, MeshShape{1, 5, 1}, MeshShape{3, 1, 1},
                                 MeshShape{1, 1, 3}, MeshShape{1, 3, 2}, MeshShape{2, 2, 2}}) {
      SCOPED_TRACE(std::string(model) + " " + ToString(mesh));
      ExpectSameCurve(CurveOf(model, Options(mesh, Compute::kF32), 5), one, 1e-5);
    }
  }
}

// From nothing: the first loss is that of knowing nothing, on every mesh, and then it falls.
TEST(TrainerTest, PresetsBeginAtTheEntropyOfTheVocabulary) {
  for (const char* name : {"gpt3-tiny", "palm-tiny", "tiny-gqa"}) {
    double first = 0;
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{2, 1, 2}, MeshShape{1, 3, 1}}) {
      SCOPED_TRACE(std::string(name) + " " + ToString(mesh));
      RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
        auto opened = OpenPreset(name, 1);
        ASSERT_TRUE(opened.ok());
        const double entropy = std::log(double(opened->config.vocab));
        const bool gpt = opened->config.architecture != "palm";
        TrainOptions options = Options(mesh);
        options.zeta = 0;
        const bool one = mesh.size() == 1;
        auto trainer = Trainer::Create(std::move(world),
                                       std::make_shared<const ModelSource>(std::move(*opened)),
                                       options, nullptr);
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        std::vector<double> losses;
        for (int64_t step = 0; step < (one ? 12 : 1); ++step) {
          const auto result = (*trainer)->Step(step, BatchOf(step, 320));
          ASSERT_TRUE(result.ok()) << result.status();
          losses.push_back(result->loss);
        }
        // PaLM's embeddings of deviation 1 make logits of deviation 1.
        EXPECT_NEAR(losses[0], entropy, gpt ? 0.05 : 1.5);
        if (one) {
          first = losses[0];
          EXPECT_LT(losses.back(), first - 0.05);
        }
        EXPECT_NEAR(losses[0] / first, 1, 1e-11);
      });
    }
  }
}

// Prefetch, micro-batches and what is saved change when things happen, not what is computed.
TEST(TrainerTest, PrefetchChangesNoBit) {
  TrainOptions options = Options({2, 2, 1}, Compute::kF32);
  const Curve ahead = CurveOf("random:tiny-gqa", options, 3);
  options.prefetch = false;
  const Curve just_in_time = CurveOf("random:tiny-gqa", options, 3);
  EXPECT_EQ(ahead.losses, just_in_time.losses);
  EXPECT_EQ(ahead.weights, just_in_time.weights);
}

TEST(TrainerTest, MicroBatchesAndRematGiveTheSameCurve) {
  const Curve one = CurveOf("random:tiny-gqa", Options({1, 1, 1}), 3);
  for (Remat remat : {Remat::kNone, Remat::kAttentionOutput, Remat::kBlock}) {
    for (int64_t packs : {1, 2, 8}) {
      TrainOptions options = Options(packs == 2 ? MeshShape{1, 1, 2} : MeshShape{2, 2, 1});
      options.remat = remat;
      options.packs_per_rank = packs;
      SCOPED_TRACE(testing::Message() << "remat " << int(remat) << " packs " << packs);
      const Curve other = CurveOf("random:tiny-gqa", options, 3);
      ExpectSameCurve(other, one, 1e-11);
      EXPECT_LT(WorstError(other.weights, one.weights), 1e-11);
    }
  }
}

// Documents that end where the ring is cut need no round but a rank's own; a later batch of the
// same lengths needs them all, in the room that there is.
TEST(TrainerTest, ABatchMayNeedMoreRoundsThanTheOneBefore) {
  const TrainOptions options = Options({1, 2, 1});
  const std::vector<std::vector<std::vector<int64_t>>> packs = {{{64, 64, 64, 64}}, {{256}}};
  for (const auto& pack : packs) {  // control: they do differ in this
    const TokenLayout layout = TokenLayout::Packed(options.layout, pack, 1, 2);
    EXPECT_EQ(Rounds(layout, AttentionSpec(), 0, 0).size(), pack == packs[0] ? 1u : 2u);
  }
  const auto curve = [&](const MeshShape& mesh) {
    TrainOptions on = options;
    on.mesh = mesh;
    return CurveOf("random:tiny-gqa", on, 2,
                   [&](int64_t step, int64_t vocab) { return BatchOf(step, vocab, packs[step]); });
  };
  ExpectSameCurve(curve({1, 2, 1}), curve({1, 1, 1}), 1e-10);
}

TEST(TrainerTest, Bf16IsNearAndNotTheSame) {
  const Curve wide = CurveOf("random:tiny-gqa", Options({2, 1, 2}, Compute::kF32), 5);
  const Curve narrow = CurveOf("random:tiny-gqa", Options({2, 1, 2}, Compute::kBF16), 5);
  for (size_t i = 0; i < wide.losses.size(); ++i) {
    EXPECT_NEAR(narrow.losses[i] / wide.losses[i], 1, 2e-2);
    EXPECT_NE(narrow.losses[i], wide.losses[i]);
  }
}

// Masks are a function of (seed, step, token): neither the mesh nor the cut into micro-batches
// shows.
TEST(TrainerTest, DropoutIsTheSameOnEveryMesh) {
  for (const char* model : {"random:tiny-gqa", "random:palm-tiny"}) {
    TrainOptions options = Options({1, 1, 1});
    options.dropout = 0.2;
    options.dropout_seed = 7;
    const Curve one = CurveOf(model, options, 4);
    for (const MeshShape mesh : {MeshShape{1, 2, 1}, MeshShape{2, 1, 2}, MeshShape{3, 1, 1},
                                 MeshShape{1, 3, 2}, MeshShape{2, 2, 1}}) {
      SCOPED_TRACE(std::string(model) + " " + ToString(mesh));
      options.mesh = mesh;
      options.packs_per_rank = mesh.ring;
      options.remat = mesh.tensor > 1 ? Remat::kBlock : Remat::kNone;
      const Curve many = CurveOf(model, options, 4);
      ExpectSameCurve(many, one, 1e-11);
      EXPECT_LT(WorstError(many.weights, one.weights), 1e-11);
    }
    options.dropout_seed = 8;  // negative control: other masks
    EXPECT_GT(std::abs(CurveOf(model, options, 1).losses[0] / one.losses[0] - 1), 1e-6);
    options.dropout = 0;
    EXPECT_GT(std::abs(CurveOf(model, options, 1).losses[0] / one.losses[0] - 1), 1e-6);
  }
}

// The noise scale's small batch is the first micro-batch: here two packs of five, whether they are
// one rank's, two data ranks', or the first half of a batch that would be made at once.
TEST(TrainerTest, NoiseScaleIsMeasuredOnEveryMesh) {
  struct NoiseCase {
    MeshShape mesh;
    int64_t packs_per_rank;
  };
  const auto source = TestSource("random:tiny-gqa");
  const TrainBatch whole = BatchOf(0, source->config.vocab);
  TrainBatch first = whole;
  first.documents.resize(2);
  for (const NoiseCase& c :
       {NoiseCase{{1, 1, 1}, 2}, NoiseCase{{2, 1, 1}, 1}, NoiseCase{{1, 1, 1}, 8},
        NoiseCase{{2, 2, 2}, 1}, NoiseCase{{1, 3, 1}, 5}, NoiseCase{{3, 1, 2}, 2}}) {
    SCOPED_TRACE(ToString(c.mesh));
    TrainOptions options = Options(c.mesh);
    options.packs_per_rank = c.packs_per_rank;
    options.noise_scale_every = 2;
    RunOnRanks(int(c.mesh.size()), [&](std::unique_ptr<Communicator> world) {
      auto trainer = Trainer::Create(std::move(world), source, options, nullptr);
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      Trainer& t = **trainer;
      const auto squared_norm = [&](const TrainBatch& batch) {
        EXPECT_TRUE(t.Gradient(1, batch).ok());  // a step that is not measured
        double sum = 0;
        for (const double square : t.store().SquaredSums(Kind::kGradients)) sum += square;
        return sum;
      };
      const double b = 62, B = 155;  // labels of packs 0 and 1, and of all
      const double small = squared_norm(first), large = squared_norm(whole);
      ASSERT_TRUE(t.Step(0, whole).ok());
      const double gradient = (B * large - b * small) / (B - b);
      const double trace = (small - large) / (1 / b - 1 / B);
      EXPECT_NEAR(t.noise().gradient / gradient, 1, 1e-9);
      EXPECT_NEAR(t.noise().trace / trace, 1, 1e-9);
      EXPECT_GT(std::abs(small / large - 1), 1e-3);  // control: the two are not alike
      ASSERT_TRUE(t.Step(1, whole).ok());
      EXPECT_EQ(t.noise().weight, 1);
      ASSERT_TRUE(t.Step(2, whole).ok());
      EXPECT_GT(t.noise().weight, 1.9);
    });
  }
}

// A weight that is not a number makes gradients that are not: the step is skipped and the parameter
// named on every rank, and nothing that is stored changes.
TEST(TrainerTest, AStepThatIsNotFiniteIsSkippedAndNamed) {
  const auto source = TestSource("random:tiny-gqa");
  RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
    auto trainer = Trainer::Create(std::move(world), source, Options({2, 1, 1}), nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    Trainer& t = **trainer;
    const int64_t last = t.store().groups().head();
    const Tensor stored = t.store().Stored(Kind::kWeights, last);
    const double before = stored.as<double>()[1];
    if (t.mesh().rank() == 0) stored.as<double>()[0] = std::nan("");
    const auto result = t.Step(0, BatchOf(0, source->config.vocab));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_NE(result->skipped, "");
    EXPECT_EQ(t.updates(), 0);
    EXPECT_EQ(stored.as<double>()[1], before);
  });
}

TEST(TrainerTest, RanksWithOtherModelsAreRefused) {
  RunOnRanks(3, [&](std::unique_ptr<Communicator> world) {
    auto opened = OpenPreset("tiny-gqa", world->rank() == 2 ? 2 : 1);
    ASSERT_TRUE(opened.ok());
    const auto source = std::make_shared<const ModelSource>(std::move(*opened));
    const auto trainer = Trainer::Create(std::move(world), source, Options({3, 1, 1}), nullptr);
    EXPECT_EQ(trainer.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(trainer.status().message().find("rank 2"), absl::string_view::npos);
  });
}

TEST(TrainerTest, WhatCannotTrainIsOneClearError) {
  const auto source = TestSource("random:tiny-gqa");
  RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
    auto trainer = Trainer::Create(std::move(world), source, Options({2, 1, 1}), nullptr);
    ASSERT_TRUE(trainer.ok());
    TrainBatch batch;  // single tokens predict nothing
    batch.documents = {{1}, {1, 1}};
    batch.read = [](int64_t p) -> absl::StatusOr<Pack> {
      return Pack{std::vector<int32_t>(p + 1, 3), std::vector<int32_t>(p + 1, -1), {}};
    };
    const auto alone = (*trainer)->Gradient(0, batch);
    EXPECT_EQ(alone.status().code(), absl::StatusCode::kInvalidArgument) << alone.status();
    const auto step = (*trainer)->Step(0, batch);  // but a step of a run may be such a one
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_EQ(step->labels, 0);
    EXPECT_EQ(step->tokens, 3);
    EXPECT_EQ((*trainer)->updates(), 0);
    batch = BatchOf(0, source->config.vocab);
    batch.read = [read = batch.read](int64_t p) -> absl::StatusOr<Pack> {
      if (p == 1) return absl::DataLossError("shard 3 is damaged");
      return read(p);
    };
    const auto damaged = (*trainer)->Step(0, batch);  // read by one rank, refused by both
    EXPECT_EQ(damaged.status().code(), absl::StatusCode::kDataLoss) << damaged.status();
  });
}

}  // namespace
}  // namespace toroid
