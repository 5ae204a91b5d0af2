// Pods that roll down a quadratic bowl, whose gradient is known, instead of training a model: what
// the outer exchange (diloco, streaming) does to the weights, by itself. float64.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/exchange_spec.h"
#include "tests/support/run_on_pods.h"

namespace toroid {

// The gradient of pod q's bowl, whose bottom moves with the step.
inline double Bowl(double w, int64_t pod, int64_t step) {
  return w - 0.1 * double(3 * pod + step % 5);
}
inline int64_t LabelsOf(int64_t pod, int64_t step) { return 3 + 2 * pod + step % 2; }
inline constexpr double kEta = 0.25;

struct BowlRun {
  std::map<int64_t, std::vector<std::vector<double>>> weights;  // by pod, after each step; rank 0
  std::map<int64_t, std::vector<uint64_t>> hashes, outer;       // of all ranks
};

// SGD by kEta on each pod, with the exchange after each step.
BowlRun RollDown(const NewPodLinkNetwork& network, const std::vector<MeshShape>& meshes,
                 const ExchangeSpec& spec, int64_t steps);

// The same by one who sees all, with the mean gradient; after the last step.
std::vector<double> RollAlone(int64_t pods, int64_t steps);

// Infinity if they are not as long.
double Furthest(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace toroid
