// Gradient noise scale B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 1812.06162, appendix A.1):
// the batch, in the unit in which batches are given here (tokens or sequences), beyond which a
// larger one brings little.
//
// With E|G_b|^2 = |G|^2 + tr(Sigma) / b, two batch sizes of one step give unbiased estimates
//   |G|^2     ~ (B |G_B|^2 - b |G_b|^2) / (B - b)
//   tr(Sigma) ~ (|G_b|^2 - |G_B|^2) / (1/b - 1/B)
// Both are averaged over steps separately, and only then divided: a quotient of noisy numbers is
// biased. b is a part of the batch of B, its gradient G_b averaged over b; |G_b|^2 may be the mean
// over several such parts.
#pragma once

#include <cstdint>
#include <optional>

namespace toroid {

struct GradientNoiseScale {
  // Weight of the past in both averages: 1 averages all steps alike, 0.99 about the last hundred.
  double decay = 1;

  // State: saved with the checkpoint. Weighted sums, whose common weight cancels.
  double gradient = 0;  // of |G|^2
  double trace = 0;     // of tr(Sigma)
  double weight = 0;

  // Adds a step. REQUIRES 0 < small_batch < large_batch. Numbers that are not finite are not
  // added: that step is skipped (clip.h).
  void Add(double small_batch, double small_squared, double large_batch, double large_squared);

  // Empty while it has no meaning: before the first step, or while an average is not positive, as
  // noise can make it in the first steps.
  std::optional<double> value() const;
};

}  // namespace toroid
