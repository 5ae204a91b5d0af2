// What the optimizers' updates are told: what stays (Spec), and what changes from step to step,
// which reaches them in device memory (Step). Formulas: adamw.h, adafactor.h.
#pragma once

#include <cstdint>

namespace toroid {

struct AdamWSpec {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
};

// What changes from step to step: five doubles in device memory, in this order.
struct AdamWStep {
  double gradient_scale = 1;  // of the clip, and of the tokens that the sum was made over
  double learning_rate = 0;
  double shrink = 0;                          // learning rate x decay
  double m_correction = 1, v_correction = 1;  // 1 - beta1^k, 1 - beta2^k in step k = 1, 2, ...
};

struct AdafactorSpec {
  double beta1 = 0.9, epsilon = 1e-30;
};

// What changes from step to step and from parameter to parameter: four doubles in device memory, in
// this order.
struct AdafactorStep {
  double gradient_scale = 1, step_size = 0, shrink = 0, beta2 = 0;
};

inline constexpr int64_t kAdamWFields = sizeof(AdamWStep) / sizeof(double);
inline constexpr int64_t kAdafactorFields = sizeof(AdafactorStep) / sizeof(double);

}  // namespace toroid
