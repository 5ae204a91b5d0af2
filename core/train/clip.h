// What happens between a step's gradient and the optimizer: the global-norm clip, steps that are
// not made because the gradient is not finite, and who takes weight decay. Pure; thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "core/model/params.h"

namespace toroid {

// norm = sqrt(squared sum of the whole gradient, each replicated tensor counted once)
// factor = min(1, max_norm / norm) (Pascanu et al. 1211.5063), the optimizer's gradient_scale.
// (torch divides by norm + 1e-6, hence differs by 1e-6 / norm.)
struct GradientClip {
  double norm = 0;
  double factor = 1;
  bool finite = true;  // otherwise the step is skipped on every rank: weights and moments stay
};

// max_norm 0: never clips, but still tells a gradient that is not finite. The sum is the same on
// every rank, hence so is the decision. REQUIRES max_norm >= 0.
GradientClip ClipGlobalNorm(double squared_sum, double max_norm);

// Steps skipped for a gradient that was not finite. State: saved with the checkpoint.
struct SkippedSteps {
  int64_t total = 0;
  int64_t in_a_row = 0;

  // Counts a step. Error (Internal) when more than `limit` in a row were skipped: no update will
  // make such a run finite again. `culprit` names what was not finite first, as the caller found
  // it.
  absl::Status Count(int64_t step, const GradientClip& clip, absl::string_view culprit,
                     int64_t limit);
};

// Gains of norms and biases keep their size; all else decays (Loshchilov & Hutter's w, as GPT-3 and
// Llama apply it).
bool TakesDecay(const ParamSpec& spec);

// The optimizers' `shrink`, w = (1 - shrink) w - ...: AdamW's learning rate x rate, or PaLM's
// learning rate squared.
struct WeightDecay {
  enum class Kind { kTimesRate, kRateSquared };
  Kind kind = Kind::kTimesRate;
  double rate = 0;  // kTimesRate only

  double Shrink(const ParamSpec& spec, double learning_rate) const;
};

}  // namespace toroid
