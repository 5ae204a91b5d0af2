// What the step number decides: the learning rate and the size of the batch.
//
// Everywhere in core/train `step` counts the steps done before, from 0; formulas are written with
// k = step + 1, as papers do. Plain data, validated once; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace toroid {

// Warm-up is linear, peak k / warmup for k < warmup; then by kind:
//   constant      peak
//   cosine        final + (peak - final) (1 + cos(pi (k - warmup) / (steps - warmup))) / 2
//   wsd           peak up to k = steps - decay, then linear: final + (peak - final) (steps - k) /
//                 decay. Warm-up, stable, decay (Hu et al. 2404.06395)
//   inverse sqrt  peak sqrt(hold / max(k, hold)) (PaLM, Chowdhery et al. 2204.02311, section 5)
// Cosine and WSD reach `final_rate` in the last step, k = steps, and stay there.
struct LearningRateSchedule {
  enum class Kind { kConstant, kCosine, kWsd, kInverseSqrt };
  Kind kind = Kind::kConstant;
  double peak = 0;
  int64_t warmup = 0;
  double final_rate = 0;  // cosine, wsd
  int64_t steps = 0;      // cosine, wsd: of the whole run
  int64_t decay = 0;      // wsd
  int64_t hold = 0;       // inverse sqrt
};

// InvalidArgument naming the number that is wrong, or one that this kind does not have.
absl::Status Validate(const LearningRateSchedule& schedule);

// REQUIRES: a valid schedule, step >= 0.
double LearningRate(const LearningRateSchedule& schedule, int64_t step);

// PaLM: 1e-2 for k <= 10,000, then 1 / sqrt(k).
LearningRateSchedule PalmLearningRate();

// Tokens of a step's batch: those of the last stage that began.
struct BatchRamp {
  struct Stage {
    int64_t first_step = 0;
    int64_t tokens = 0;
  };
  std::vector<Stage> stages;

  // REQUIRES of both: a valid ramp, 0 <= step <= 2^31.
  int64_t Tokens(int64_t step) const;
  // Tokens of all steps before.
  int64_t TokensBefore(int64_t step) const;
};

// InvalidArgument if the stages do not ascend from step 0, are larger than 2^31, or are no whole
// sequences.
absl::Status Validate(const BatchRamp& ramp, int64_t sequence_length);

// PaLM: 512 sequences of 2,048 tokens, 1,024 from step 50,000, 2,048 from step 115,000.
BatchRamp PalmBatchRamp();

}  // namespace toroid
