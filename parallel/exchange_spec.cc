#include "parallel/exchange_spec.h"

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

absl::Status Rule(bool kept, absl::string_view name, double value, absl::string_view text) {
  return kept ? absl::OkStatus()
              : absl::InvalidArgumentError(
                    absl::StrCat("exchange: ", name, " is ", value, ", must be ", text));
}

}  // namespace

const char* ExchangeModeName(Mode mode) {
  constexpr const char* kNames[] = {"exact", "delayed", "diloco", "streaming"};
  return kNames[int(mode)];
}

std::string ToString(const ExchangeSpec& spec) {
  std::string text = ExchangeModeName(spec.mode);
  if (!spec.gradients()) {
    absl::StrAppend(&text, " every ", spec.every, ", outer rate ", spec.outer_rate, ", momentum ",
                    spec.outer_momentum);
  }
  if (spec.mode == Mode::kStreaming) {
    absl::StrAppend(&text, ", fragments ", spec.fragments, ", tau ", spec.tau, ", alpha ",
                    spec.alpha);
  }
  absl::StrAppend(&text, ", codec ", CodecName(spec.codec));
  if (spec.stochastic) absl::StrAppend(&text, ", stochastic rounding");
  if (spec.error_feedback) absl::StrAppend(&text, ", error feedback");
  return text;
}

absl::Status Validate(const ExchangeSpec& spec) {
  if (spec.gradients()) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(Rule(spec.every >= 1, "every", double(spec.every), "at least 1 step"));
  TOROID_RETURN_IF_ERROR(Rule(spec.outer_rate > 0 && spec.outer_rate <= 10, "outer rate",
                              spec.outer_rate, "above 0 and at most 10"));
  TOROID_RETURN_IF_ERROR(Rule(spec.outer_momentum >= 0 && spec.outer_momentum < 1, "outer momentum",
                              spec.outer_momentum, "at least 0 and below 1"));
  if (spec.mode != Mode::kStreaming) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(Rule(spec.fragments >= 1 && spec.fragments <= spec.every, "fragments",
                              double(spec.fragments), "from 1 to `every`"));
  // One fragment at a time is on its way: that is what the memory is planned for.
  TOROID_RETURN_IF_ERROR(Rule(spec.tau >= 0 && spec.tau < spec.every / spec.fragments, "tau",
                              double(spec.tau), "at least 0 and below every / fragments"));
  return Rule(spec.alpha >= 0 && spec.alpha <= 1, "alpha", spec.alpha, "from 0 to 1");
}

}  // namespace toroid
