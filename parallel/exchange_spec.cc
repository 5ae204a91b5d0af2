#include "parallel/exchange_spec.h"

#include "absl/strings/str_cat.h"

namespace toroid {
const char* ExchangeModeName(ExchangeSpec::Mode mode) {
  constexpr const char* kNames[] = {"exact", "delayed"};
  return kNames[int(mode)];
}

std::string ToString(const ExchangeSpec& spec) {
  std::string text = ExchangeModeName(spec.mode);
  absl::StrAppend(&text, ", codec ", CodecName(spec.codec));
  if (spec.stochastic) absl::StrAppend(&text, ", stochastic rounding");
  if (spec.error_feedback) absl::StrAppend(&text, ", error feedback");
  return text;
}

}  // namespace toroid
