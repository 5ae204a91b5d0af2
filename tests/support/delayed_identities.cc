// What one step's delay of the gradients does to convergence.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/gradient_exchange.h"
#include "tests/support/pod_identities.h"
#include "tests/support/train_on_pods.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;
using Mode = ExchangeSpec::Mode;

// --- delayed in a bowl: w(k + 1) = w(k) - x w(k - 1) with x = eta lambda -------------------------

// One weight after each step of SGD by 1 with the mean gradient x w of two pods, each of which has
// its own half of it.
std::vector<double> Descend(const NewPodLinkNetwork& network, Mode mode, double x, int64_t steps) {
  std::vector<double> path;
  const std::vector<MeshShape> meshes = {{1, 1, 1}, {1, 1, 1}};
  RunOnPods(network, meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    Mesh mesh(std::move(world), {1, 1, 1});
    const ModelConfig config = SmallestModel();
    TrainingStore filled(mesh, config, DType::kF64);
    filled.Fill(1);
    ParamStore& store = *filled;
    const auto swap =
        PodSwap::Create(link, 2, config, config.layers, store, {ExchangeOf(mode), 5, 1}, {});
    ASSERT_TRUE(swap.ok()) << swap.status();
    GradientExchange exchange(**swap);
    for (int64_t step = 0; step < steps; ++step) {
      exchange.Begin(step, /*labels=*/1);
      const auto visit = [&](const auto& body) {
        for (int64_t g = 0; g < store.groups().count(); ++g) {
          const Tensor w = store.Stored(Kind::kWeights, g), d = store.Stored(Kind::kGradients, g);
          for (int64_t i = 0; i < w.rows(); ++i) body(w.as<double>()[i], d.as<double>()[i]);
        }
      };
      visit([&](double& w, double& d) { d = pod == 0 ? 1.5 * x * w : 0.5 * x * w; });
      for (int64_t g = 0; g < store.groups().count(); ++g) exchange.Contribute(g);
      const auto totals = exchange.Finish(/*loss=*/0, /*word=*/0);
      ASSERT_TRUE(totals.ok()) << totals.status();
      store.ops().Synchronize(store.stream());
      if (totals->labels > 0) visit([](double& w, double& d) { w -= d; });
      if (pod == 0) path.push_back(store.Stored(Kind::kWeights, 0).as<double>()[0]);
    }
  });
  return path;
}

// The modulus by which a step grows the solutions of complex roots z, z': of w(k) and w(k - 1) it
// is w(k)^2 - w(k) w(k - 1) + x w(k - 1)^2 that is multiplied by z z' each step.
double Growth(const std::vector<double>& path, double x) {
  const auto energy = [&](size_t k) {
    return path[k] * path[k] - path[k] * path[k - 1] + x * path[k - 1] * path[k - 1];
  };
  const size_t last = path.size() - 1;
  return std::pow(energy(last) / energy(1), 0.5 / double(last - 1));
}

// A10: z^2 - z + x = 0 has its roots inside the circle for 0 < x < 1.
void DelayedConvergesBelowTheClosedFormLimitAlone(const NewPodLinkNetwork& network) {
  constexpr int64_t kSteps = 160;
  for (const double x : {0.5, 0.95, 1.05, 1.5}) {
    const std::vector<double> path = Descend(network, Mode::kDelayed, x, kSteps);
    ASSERT_EQ(int64_t(path.size()), kSteps);
    EXPECT_NEAR(Growth(path, x), std::sqrt(x), 1e-6) << x;
    const double moved = std::abs(path[kSteps - 1]) + std::abs(path[kSteps - 2]);
    if (x < 1) {
      EXPECT_LT(moved, 0.05 * std::abs(path[0])) << x;
    } else {
      EXPECT_GT(moved, 20 * std::abs(path[0])) << x;
    }
  }
  const std::vector<double> real = Descend(network, Mode::kDelayed, 0.2, 60);  // real roots
  EXPECT_NEAR(real[59] / real[58], (1 + std::sqrt(0.2)) / 2, 1e-9);
  const std::vector<double> exact = Descend(network, Mode::kExact, 1.5, 30);  // control
  EXPECT_NEAR(exact[29] / exact[28], -0.5, 1e-9);
}

}  // namespace

const std::vector<PodIdentityCase>& DelayedIdentities() {
  static const auto* const cases =
      new std::vector<PodIdentityCase>{{"DelayedConvergesBelowTheClosedFormLimitAlone",
                                        DelayedConvergesBelowTheClosedFormLimitAlone}};
  return *cases;
}

}  // namespace toroid
