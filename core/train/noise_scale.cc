#include "core/train/noise_scale.h"

#include <cmath>

#include "core/check.h"

namespace toroid {

void GradientNoiseScale::Add(double small_batch, double small_squared, double large_batch,
                             double large_squared) {
  TOROID_CHECK_GT(small_batch, 0);
  TOROID_CHECK_GT(large_batch, small_batch);
  const double squared =
      (large_batch * large_squared - small_batch * small_squared) / (large_batch - small_batch);
  const double variance = (small_squared - large_squared) / (1 / small_batch - 1 / large_batch);
  if (!std::isfinite(squared) || !std::isfinite(variance)) return;
  gradient = decay * gradient + squared;
  trace = decay * trace + variance;
  weight = decay * weight + 1;
}

std::optional<double> GradientNoiseScale::value() const {
  if (!(weight > 0) || !(gradient > 0) || !(trace > 0)) return std::nullopt;
  return trace / gradient;
}

}  // namespace toroid
