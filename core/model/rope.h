// The rotary frequencies of a model: what a request's positions are multiplied by.
//
// Pair i of a head (elements i and i + K/2: half-split, as Hugging Face stores Q and K) is rotated
// at position m by the angle m * inv_freq[i]; cos and sin are multiplied by attention_scale.
// Formulas are those of transformers' modeling_rope_utils, in double where transformers computes in
// float32.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/model_config.h"

namespace toroid {

struct RopeFrequencies {
  std::vector<double> inv_freq;  // size K/2, radians per position
  double attention_scale = 1.0;
  bool operator==(const RopeFrequencies&) const = default;
};

// `length_bound` is the largest length that the request can reach (prompt + max tokens). Only
// kDynamic looks at it: its base is fixed by it for the whole request, so that keys cached early
// stay valid. REQUIRES: config.Validate() is ok.
RopeFrequencies Rope(const ModelConfig& config, int64_t length_bound);

// The longest sequence whose positions the model's RoPE covers: its context, which counts the
// scaling; any length where the base follows the length (kDynamic). What lies beyond was never
// trained, and its numbers are not wrong but mean nothing.
int64_t RopeReach(const ModelConfig& config);

}  // namespace toroid
