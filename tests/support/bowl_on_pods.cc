#include "tests/support/bowl_on_pods.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include "parallel/outer_exchange.h"
#include "parallel/param_hash.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// This rank's weights, without pads.
std::vector<double> WeightsOf(const ParamStore& store) {
  std::vector<double> all;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const ParamPiece& piece : store.pieces(g)) {
      const Tensor w = store.Stored(Kind::kWeights, g, piece);
      all.insert(all.end(), w.as<double>(), w.as<double>() + w.rows());
    }
  }
  return all;
}

}  // namespace

BowlRun RollDown(const NewPodLinkNetwork& network, const std::vector<MeshShape>& meshes,
                 const ExchangeSpec& spec, int64_t steps) {
  BowlRun run;
  std::mutex mutex;
  RunOnPods(network, meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
    Mesh mesh(std::move(world), meshes[size_t(pod)]);
    const ModelConfig config = TestSource("random:tiny-gqa")->config;
    TrainingStore filled(mesh, config, DType::kF64);
    filled.Fill(1);
    ParamStore& store = *filled;
    const auto swap = PodSwap::Create(link, int64_t(meshes.size()), config, config.layers, store,
                                      {spec, 5, 1}, {});
    ASSERT_TRUE(swap.ok()) << swap.status();
    OuterExchange exchange(**swap);
    for (int64_t step = 0; step < steps; ++step) {
      exchange.Begin(step);
      exchange.FinishReading();
      for (int64_t g = 0; g < store.groups().count(); ++g) {
        for (const ParamPiece& piece : store.pieces(g)) {
          double* w = store.Stored(Kind::kWeights, g, piece).as<double>();
          for (int64_t i = 0; i < piece.count; ++i) w[i] -= kEta * Bowl(w[i], pod, step);
        }
      }
      const absl::Status swapped = exchange.After(step + 1, LabelsOf(pod, step), 0);
      ASSERT_TRUE(swapped.ok()) << swapped;
      const uint64_t hash = ParamHash(store), outer = ParamHash(store, exchange.outer_weights());
      if (mesh.rank() != 0) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      run.weights[pod].push_back(WeightsOf(store));
      run.hashes[pod].push_back(hash);
      run.outer[pod].push_back(outer);
    }
  });
  return run;
}

std::vector<double> RollAlone(int64_t pods, int64_t steps) {
  std::vector<double> w;
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    const ModelConfig config = TestSource("random:tiny-gqa")->config;
    TrainingStore filled(mesh, config, DType::kF64);
    filled.Fill(1);
    w = WeightsOf(*filled);
  });
  for (int64_t step = 0; step < steps; ++step) {
    for (double& x : w) {
      double sum = 0, labels = 0;
      for (int64_t q = 0; q < pods; ++q) {
        sum += double(LabelsOf(q, step)) * Bowl(x, q, step);
        labels += double(LabelsOf(q, step));
      }
      x -= kEta * (pods == 1 ? Bowl(x, 0, step) : sum / labels);
    }
  }
  return w;
}

double Furthest(const std::vector<double>& a, const std::vector<double>& b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

}  // namespace toroid
