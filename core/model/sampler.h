// How the next token is drawn from a row of logits.
#pragma once

#include <cstdint>

namespace toroid {

struct SamplingParams {
  double temperature = 0;         // 0 = greedy
  double top_p = 1;               // (0, 1]
  int64_t top_k = 0;              // 0 = off
  double min_p = 0;               // [0, 1)
  double repetition_penalty = 1;  // > 0
  double presence_penalty = 0;
  double frequency_penalty = 0;
  uint64_t seed = 0;
};

}  // namespace toroid
