#include "core/train/clip.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {

GradientClip ClipGlobalNorm(double squared_sum, double max_norm) {
  TOROID_CHECK_GE(max_norm, 0);
  GradientClip clip;
  clip.norm = std::sqrt(squared_sum);
  clip.finite = std::isfinite(clip.norm);
  if (!clip.finite) {
    clip.factor = 0;
  } else if (max_norm > 0 && clip.norm > max_norm) {
    clip.factor = max_norm / clip.norm;
  }
  return clip;
}

absl::Status SkippedSteps::Count(int64_t step, const GradientClip& clip, absl::string_view culprit,
                                 int64_t limit) {
  if (clip.finite) {
    in_a_row = 0;
    return absl::OkStatus();
  }
  ++total;
  ++in_a_row;
  if (in_a_row <= limit) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "step ", step + 1, ": the gradient is not finite in ", in_a_row, " steps in a row, first in ",
      culprit, "; lower the learning rate, or go on from an older checkpoint"));
}

bool TakesDecay(const ParamSpec& spec) { return spec.group != "norm" && spec.group != "bias"; }

double WeightDecay::Shrink(const ParamSpec& spec, double learning_rate) const {
  if (!TakesDecay(spec)) return 0;
  return learning_rate * (kind == Kind::kRateSquared ? learning_rate : rate);
}

}  // namespace toroid
