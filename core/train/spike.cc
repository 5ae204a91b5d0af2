#include "core/train/spike.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

// The upper one of two in the middle. REQUIRES values.
double Median(std::vector<double> values) {
  const auto middle = values.begin() + int64_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

absl::Status Wrong(absl::string_view name, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("spike rule: ", name, " must be ", rule));
}

}  // namespace

absl::Status Validate(const SpikeRule& rule) {
  if (rule.window < 1) return Wrong("the window", "at least 1");
  if (rule.least_losses < 1 || rule.least_losses > rule.window) {
    return Wrong("the least number of losses", "from 1 to the window");
  }
  if (!(rule.deviations > 0)) return Wrong("the number of deviations", "above 0");
  if (!(rule.least_rise >= 0)) return Wrong("the least rise", "at least 0");
  if (rule.rewind_steps < 0) return Wrong("the number of steps to go back", "at least 0");
  if (rule.skip_steps < 1) return Wrong("the number of batches to skip", "at least 1");
  if (rule.max_rewinds < 0) return Wrong("the most rewinds", "at least 0");
  return absl::OkStatus();
}

SpikeVerdict Observe(const SpikeRule& rule, double loss, SpikeState& state) {
  SpikeVerdict verdict;
  verdict.threshold = std::numeric_limits<double>::infinity();
  if (!state.losses.empty()) verdict.median = Median(state.losses);
  if (int64_t(state.losses.size()) >= rule.least_losses) {
    std::vector<double> distances = state.losses;
    for (double& value : distances) value = std::abs(value - verdict.median);
    const double deviation = 1.4826 * Median(std::move(distances));
    verdict.threshold = verdict.median + std::max(rule.deviations * deviation, rule.least_rise);
  }
  verdict.spike = !std::isfinite(loss) || loss > verdict.threshold;
  if (!verdict.spike) {
    if (int64_t(state.losses.size()) >= rule.window) state.losses.erase(state.losses.begin());
    state.losses.push_back(loss);
  }
  return verdict;
}

absl::StatusOr<Rewind> PlanRewind(const SpikeRule& rule, const SpikeState& state, int64_t step,
                                  std::span<const int64_t> checkpoints, const BatchRamp& ramp,
                                  const SkipList& skipped) {
  TOROID_CHECK_GE(step, 0);
  if (state.rewinds >= rule.max_rewinds) {
    return absl::ResourceExhaustedError(
        absl::StrCat("step ", step + 1, ": the loss spiked again after ", state.rewinds,
                     " rewinds, the most allowed; lower the learning rate or allow more"));
  }
  const int64_t wanted = std::max<int64_t>(0, step - rule.rewind_steps);
  int64_t to = -1, oldest = -1;
  for (const int64_t checkpoint : checkpoints) {
    if (checkpoint <= wanted) to = std::max(to, checkpoint);
    if (checkpoint <= step) oldest = oldest < 0 ? checkpoint : std::min(oldest, checkpoint);
  }
  // Checkpoints that were asked for between two regular ones may have pushed an older one out.
  if (to < 0) to = oldest;
  if (to < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step + 1,
                     ": the loss spiked, and there is no checkpoint to go back to; give the "
                     "run another output directory, or lower the learning rate"));
  }
  Rewind plan{.to_step = to, .first = to, .skipped = skipped, .rewinds = state.rewinds + 1};
  plan.missing = std::max<int64_t>(0, to - wanted);
  plan.end = to + std::max(rule.skip_steps, step - to + 1);
  plan.skipped.SkipOfRun(ramp.TokensBefore(plan.first), ramp.TokensBefore(plan.end));
  return plan;
}

}  // namespace toroid
