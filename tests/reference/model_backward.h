// REF64's backward: the gradient of a loss by every parameter, dense and naive in double on one
// thread. Written from the formulas with the ops of tests/reference, sharing no code with core:
// every layer is computed again from its input. That it is the gradient of ReferenceForward is
// tested against central differences.
#pragma once

#include "tests/reference/model.h"

namespace toroid {

// loss = sum_i weight_i (-log p_i + zeta (log Z_i)^2) over tokens with label >= 0.
struct ReferenceLoss {
  std::vector<int32_t> labels;
  std::vector<double> weights;
  double zeta = 0;
};

struct ReferenceGradients {
  double loss = 0;
  ReferenceParams d;  // by parameter, of its size
};

// The loss alone, from ReferenceForward's logits.
double ReferenceLossOf(const ModelConfig& config, const ReferenceParams& params,
                       const ReferenceInput& input, const ReferenceLoss& loss);
ReferenceGradients ReferenceBackward(const ModelConfig& config, const ReferenceParams& params,
                                     const ReferenceInput& input, const ReferenceLoss& loss);

}  // namespace toroid
