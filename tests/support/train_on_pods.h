// Training on pods of threads, and on one rank what it must be equal to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/run_on_pods.h"
#include "tests/support/training_curves.h"

namespace toroid {

// What one pod saw, and its weights at the end.
struct PodCurve {
  std::vector<double> losses, norms;
  std::vector<uint64_t> hashes;  // of the weights after each step
  std::vector<int64_t> labels;
  Weights weights;
  // Of all ranks, behind the last step: payloads, and what was written to the link by then.
  int64_t bytes_sent = 0, wire_sent = 0;
};

using MakeBatch = std::function<TrainBatch(int64_t step, int64_t vocab)>;
inline TrainBatch AwkwardBatch(int64_t step, int64_t vocab) { return BatchOf(step, vocab); }

// Before each step, on each rank.
using Meddle = std::function<void(Trainer&, int64_t pod, int64_t step)>;

// `steps` steps with base.pods.exchange on pods of these meshes; by pod.
std::vector<PodCurve> TrainOnPods(const NewPodLinkNetwork& network, const std::string& model,
                                  const TrainOptions& base, const std::vector<MeshShape>& meshes,
                                  int64_t steps, const MakeBatch& batch = AwkwardBatch,
                                  const Meddle& meddle = nullptr);

// The whole batch on one rank.
PodCurve TrainOnOne(const std::string& model, TrainOptions options, int64_t steps,
                    const MakeBatch& batch = AwkwardBatch);

// Hashes, losses and norms, bit for bit.
void ExpectAllPodsAlike(const std::vector<PodCurve>& pods);
void ExpectOnePod(const std::vector<PodCurve>& pods, const PodCurve& one, double tolerance);

// The default codec loses nothing in float64.
inline ExchangeSpec ExchangeOf(ExchangeSpec::Mode mode, int64_t every = 1,
                               Codec codec = Codec::kFp64) {
  ExchangeSpec spec;
  spec.mode = mode;
  spec.every = every;
  spec.codec = codec;
  return spec;
}
// Of one rank, in float64.
TrainOptions Float64(const ExchangeSpec& exchange = ExchangeOf(ExchangeSpec::Mode::kExact));

}  // namespace toroid
