#include "core/train/update.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace toroid {

AdamWStep AdamWUpdate(const AdamWSpec& spec, int64_t update, double gradient_scale,
                      double learning_rate, double shrink) {
  TOROID_CHECK_GE(update, 1);
  return {.gradient_scale = gradient_scale,
          .learning_rate = learning_rate,
          .shrink = shrink,
          .m_correction = 1 - std::pow(spec.beta1, double(update)),
          .v_correction = 1 - std::pow(spec.beta2, double(update))};
}

AdafactorStep AdafactorUpdate(int64_t update, double gradient_scale, double learning_rate,
                              double shrink, double squared_sum, int64_t elements) {
  TOROID_CHECK_GE(update, 1);
  TOROID_CHECK_GT(elements, 0);
  const double rms = std::sqrt(squared_sum / double(elements));
  return {.gradient_scale = gradient_scale,
          .step_size = learning_rate * std::max(1e-3, rms),
          .shrink = shrink,
          .beta2 = 1 - std::pow(double(update), -0.8)};
}

}  // namespace toroid
