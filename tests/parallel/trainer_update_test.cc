// What a step does with its gradient, seen through Trainer on meshes of threads: the clip reaches
// the moments, Adafactor learns one curve.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

using Values = std::vector<double>;

// What this rank stores, group after group.
Values Stored(const ParamStore& store, Kind kind) {
  Values all;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    const Tensor stored = store.Stored(kind, g);
    all.insert(all.end(), stored.as<double>(), stored.as<double>() + stored.size());
  }
  return all;
}

// Of the first step's gradient, on one rank: where nothing is stored twice.
double NormOnOneRank(const std::string& model) {
  double norm = 0;
  RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
    const auto source = TestSource(model);
    auto trainer = Trainer::Create(std::move(world), source, Options({1, 1, 1}), nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ASSERT_TRUE((*trainer)->Gradient(0, BatchOf(0, source->config.vocab)).ok());
    const Values gradient = Stored((*trainer)->store(), Kind::kGradients);
    norm = std::sqrt(std::inner_product(gradient.begin(), gradient.end(), gradient.begin(), 0.0));
  });
  return norm;
}

// AdamW's first moments after one update are (1 - beta1) times the gradient that it was given.
TEST(TrainerUpdateTest, MomentsTakeTheClippedGradient) {
  const auto source = TestSource("random:tiny-gqa");
  const double norm = NormOnOneRank("random:tiny-gqa");
  ASSERT_GT(norm, 0);
  for (const double limit : {0.5, 2.0, 0.0}) {  // controls: longer than the gradient, none
    const double factor = limit == 0.5 ? 0.5 : 1;
    for (const MeshShape mesh :
         {MeshShape{1, 1, 1}, MeshShape{1, 3, 1}, MeshShape{1, 1, 2}, MeshShape{2, 1, 1}}) {
      SCOPED_TRACE(absl::StrCat(ToString(mesh), " max_norm ", limit, " of the norm"));
      TrainOptions options = Options(mesh);
      options.max_norm = limit * norm;
      RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
        auto trainer = Trainer::Create(std::move(world), source, options, nullptr);
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        Trainer& t = **trainer;
        ASSERT_TRUE(t.Gradient(0, BatchOf(0, source->config.vocab)).ok());
        const Values gradient = Stored(t.store(), Kind::kGradients);
        StepResult result;
        ASSERT_TRUE(t.Update(result).ok());
        EXPECT_EQ(t.updates(), 1);
        EXPECT_NEAR(result.grad_norm / norm, 1, 1e-12);  // before the clip
        const Values moments = Stored(t.store(), Kind::kFirstMoments);
        ASSERT_EQ(moments.size(), gradient.size());
        double worst = 0, most = 0;
        for (size_t i = 0; i < moments.size(); ++i) {
          const double expected = (1 - options.optimizer.adamw.beta1) * factor * gradient[i];
          worst = std::max(worst, std::abs(moments[i] - expected));
          most = std::max(most, std::abs(expected));
        }
        EXPECT_GT(most, 0);
        EXPECT_LT(worst, 1e-12 * most);
      });
    }
  }
}

// Its step is scaled by the RMS of whole parameters, a sum over all ranks.
TEST(TrainerUpdateTest, AdafactorIsOneCurveOnEveryMesh) {
  const auto options = [](const MeshShape& mesh) {
    TrainOptions adafactor = Options(mesh);
    adafactor.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
    adafactor.optimizer.rate.peak = 1e-2;
    adafactor.optimizer.decay = {WeightDecay::Kind::kRateSquared, 0};
    return adafactor;
  };
  const auto batch = [](int64_t, int64_t vocab) {  // one, learnt by heart
    return BatchOf(0, vocab, {{23}, {7, 1, 13}});
  };
  const Curve one = CurveOf("random:tiny-gqa", options({1, 1, 1}), 12, batch);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.2);  // it learns
  for (const MeshShape mesh :
       {MeshShape{1, 3, 1}, MeshShape{1, 1, 2}, MeshShape{1, 2, 2}, MeshShape{2, 1, 1}}) {
    SCOPED_TRACE(ToString(mesh));
    const Curve many = CurveOf("random:tiny-gqa", options(mesh), 12, batch);
    ExpectSameCurve(many, one, 1e-11);
    EXPECT_LT(WorstError(many.weights, one.weights), 1e-11);
  }
  TrainOptions other = options({1, 1, 1});  // control: with AdamW it is another curve
  other.optimizer.kind = OptimizerSpec::Kind::kAdamW;
  EXPECT_GT(std::abs(CurveOf("random:tiny-gqa", other, 2, batch).losses[1] / one.losses[1] - 1),
            1e-6);
}

}  // namespace
}  // namespace toroid
