// What the optimizers' kernels are told in one update (kernels/optimizer_step.h), from the numbers
// of the recipe. `update` is k = 1, 2, ...: the updates made, this one counted. A step that was
// skipped (clip.h) is none, so that moments and their corrections stay in step.
// Pure; thread-safe.
#pragma once

#include <cstdint>

#include "kernels/optimizer_step.h"

namespace toroid {

// gradient_scale: ClipGlobalNorm's factor, times what makes the summed gradient a mean. shrink:
// WeightDecay's. REQUIRES of both: update >= 1.

// Corrections 1 - beta^k (Kingma & Ba 2015, algorithm 1).
AdamWStep AdamWUpdate(const AdamWSpec& spec, int64_t update, double gradient_scale,
                      double learning_rate, double shrink);

// As in PaLM: beta2 = 1 - k^-0.8 (the first update takes the gradient alone), step size = learning
// rate x max(1e-3, RMS of the whole parameter), of which `squared_sum` is the sum of squares over
// its `elements`.
AdafactorStep AdafactorUpdate(int64_t update, double gradient_scale, double learning_rate,
                              double shrink, double squared_sum, int64_t elements);

}  // namespace toroid
