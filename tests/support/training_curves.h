// What tests of training share: batches with something to learn, options, curves on meshes of
// threads, whole weights gathered from all ranks and compared.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/random.h"
#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {

using Weights = std::map<std::string, std::vector<double>>;  // whole, row after row

// What a run of some steps gave.
struct Curve {
  std::vector<double> losses, norms;
  Weights weights;
};

// Documents of awkward lengths, by default in packs of 33 tokens; the batch of a step depends on
// the step alone.
inline TrainBatch BatchOf(int64_t step, int64_t vocab,
                          const std::vector<std::vector<int64_t>>& documents = {
                              {33}, {7, 1, 25}, {16, 17}, {33}, {7, 1, 25}}) {
  TrainBatch batch;
  batch.documents = documents;
  batch.read = [=](int64_t p) -> absl::StatusOr<Pack> {
    Pack pack;
    pack.document_lengths = documents[p];
    for (int64_t length : documents[p]) {
      const size_t first = pack.ids.size();
      for (int64_t i = 0; i < length; ++i) {
        // A text with something to learn: mostly a walk, sometimes a jump.
        const auto random = Philox(uint64_t(step), uint64_t(pack.ids.size()), uint64_t(p));
        const int32_t before = i > 0 ? pack.ids.back() : int32_t(random[1] % vocab);
        pack.ids.push_back(random[0] % 5 == 0 ? int32_t(random[1] % vocab)
                                              : int32_t((before + 3) % vocab));
      }
      for (int64_t i = 0; i < length; ++i) {
        pack.labels.push_back(i + 1 < length ? pack.ids[first + i + 1] : -1);
      }
    }
    return pack;
  };
  return batch;
}

inline TrainOptions Options(MeshShape mesh, Compute compute = Compute::kF64) {
  TrainOptions options;
  options.mesh = mesh;
  options.compute = compute;
  options.zeta = 1e-3;
  options.token_block = 8;
  options.optimizer.rate.peak = 3e-3;
  options.optimizer.rate.warmup = 4;
  options.optimizer.decay = {WeightDecay::Kind::kTimesRate, 0.1};
  return options;
}

inline void CollectWeights(Trainer& trainer, Weights& weights, std::mutex& mutex) {
  const std::lock_guard<std::mutex> lock(mutex);
  const ParamStore& store = trainer.store();
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const ParamPiece& piece : store.pieces(g)) {
      const GroupMember& member = store.groups().group(g).members[piece.member];
      std::vector<double>& whole = weights[member.spec.name];
      whole.resize(member.spec.rows * member.spec.cols);
      const Tensor w = store.Stored(ParamStore::Kind::kWeights, g, piece);
      for (int64_t i = 0; i < piece.count; ++i) {
        const int64_t e = piece.begin + i, cols = member.slice.col_count;
        const double value = w.dtype == DType::kF64 ? w.as<double>()[i] : w.as<float>()[i];
        whole[(member.slice.row_begin + e / cols) * member.spec.cols + member.slice.col_begin +
              e % cols] = value;
      }
    }
  }
}

// `steps` steps on options.mesh; the batch of a step by (step, vocabulary).
inline Curve CurveOf(
    const std::string& model, const TrainOptions& options, int64_t steps,
    const std::function<TrainBatch(int64_t step, int64_t vocab)>& batch =
        [](int64_t step, int64_t vocab) { return BatchOf(step, vocab); },
    const RoundsRule& rounds = Rounds) {
  Curve curve;
  std::mutex mutex;
  const auto source = TestSource(model);
  RunOnRanks(int(options.mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    auto trainer = Trainer::Create(std::move(world), source, options, nullptr, rounds);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    for (int64_t step = 0; step < steps; ++step) {
      const auto result = (*trainer)->Step(step, batch(step, source->config.vocab));
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->skipped, "");
      if (rank == 0) {
        curve.losses.push_back(result->loss);
        curve.norms.push_back(result->grad_norm);
      }
    }
    CollectWeights(**trainer, curve.weights, mutex);
  });
  return curve;
}

inline void ExpectSameCurve(const Curve& a, const Curve& reference, double tolerance) {
  ASSERT_EQ(a.losses.size(), reference.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i) {
    EXPECT_NEAR(a.losses[i] / reference.losses[i], 1, tolerance) << "step " << i;
    EXPECT_NEAR(a.norms[i] / reference.norms[i], 1, 10 * tolerance) << "step " << i;
  }
}

// Error of a tensor: max |x - ref| / max(max |ref|, 1e-6 of the largest of all tensors).
inline double WorstError(const Weights& weights, const Weights& reference) {
  double largest = 0, worst = 0;
  for (const auto& [name, values] : reference) {
    for (double x : values) largest = std::max(largest, std::abs(x));
  }
  for (const auto& [name, values] : reference) {
    double most = 1e-6 * largest, error = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      most = std::max(most, std::abs(values[i]));
      error = std::max(error, std::abs(values[i] - weights.at(name)[i]));
    }
    worst = std::max(worst, error / most);
  }
  return worst;
}

}  // namespace toroid
