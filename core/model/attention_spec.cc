#include "core/model/attention_spec.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace toroid {

absl::Status AttentionSpec::Validate() const {
  if (window < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention window is ", window, ": must be 0 (none) or positive"));
  }
  if (!std::isfinite(scale) || scale <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention scale is ", scale, ": must be positive and finite"));
  }
  if (soft_cap != 0) {
    return absl::UnimplementedError(
        absl::StrCat("attention soft_cap is ", soft_cap, ": not in this version, must be 0"));
  }
  if (sinks != 0) {
    return absl::UnimplementedError(
        absl::StrCat("attention sinks is ", sinks, ": not in this version, must be 0"));
  }
  return absl::OkStatus();
}

}  // namespace toroid
