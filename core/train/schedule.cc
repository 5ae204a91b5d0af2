#include "core/train/schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using Kind = LearningRateSchedule::Kind;

constexpr double kPi = 3.14159265358979323846;
constexpr int64_t kLargest = int64_t{1} << 31;  // of a stage's step and tokens: products fit

absl::Status Wrong(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("learning rate: ", what));
}

absl::Status RefuseOthers(const LearningRateSchedule& s) {
  const bool ends = s.kind == Kind::kCosine || s.kind == Kind::kWsd;
  if (!ends && (s.final_rate != 0 || s.steps != 0)) {
    return Wrong("only cosine and WSD have a final rate and a number of steps");
  }
  if (s.kind != Kind::kWsd && s.decay != 0) return Wrong("only WSD has steps of decay");
  if (s.kind != Kind::kInverseSqrt && s.hold != 0) {
    return Wrong("only the inverse square root has steps of hold");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const LearningRateSchedule& s) {
  if (!(s.peak > 0) || !std::isfinite(s.peak)) {
    return Wrong(absl::StrCat("the peak must be a number above 0, not ", s.peak));
  }
  if (s.warmup < 0) return Wrong(absl::StrCat("warm-up of ", s.warmup, " steps"));
  TOROID_RETURN_IF_ERROR(RefuseOthers(s));
  if (!(s.final_rate >= 0 && s.final_rate <= s.peak)) {
    return Wrong(absl::StrCat("the final rate must lie in 0 to ", s.peak, ", the peak, not be ",
                              s.final_rate));
  }
  switch (s.kind) {
    case Kind::kConstant:
      break;
    case Kind::kCosine:
      if (s.steps <= s.warmup) {
        return Wrong(absl::StrCat("a warm-up of ", s.warmup, " steps leaves none of ", s.steps,
                                  " for the cosine"));
      }
      break;
    case Kind::kWsd:
      if (s.decay < 1) return Wrong("WSD needs at least one step of decay");
      if (s.warmup > s.steps - s.decay) {
        return Wrong(absl::StrCat("warm-up of ", s.warmup, " and decay of ", s.decay,
                                  " steps are more than all ", s.steps));
      }
      break;
    case Kind::kInverseSqrt:
      if (s.hold < 1) return Wrong("the inverse square root needs at least one step of hold");
      if (s.warmup > s.hold) {
        return Wrong(
            absl::StrCat("a warm-up of ", s.warmup, " steps ends after the hold of ", s.hold));
      }
      break;
  }
  return absl::OkStatus();
}

double LearningRate(const LearningRateSchedule& s, int64_t step) {
  TOROID_CHECK_GE(step, 0);
  const int64_t k = step + 1;
  if (k < s.warmup) return s.peak * double(k) / double(s.warmup);
  switch (s.kind) {
    case Kind::kConstant:
      return s.peak;
    case Kind::kCosine: {
      const double done = double(std::min(k, s.steps) - s.warmup) / double(s.steps - s.warmup);
      return s.final_rate + (s.peak - s.final_rate) * 0.5 * (1 + std::cos(kPi * done));
    }
    case Kind::kWsd: {
      const int64_t left = std::clamp<int64_t>(s.steps - k, 0, s.decay);
      return s.final_rate + (s.peak - s.final_rate) * double(left) / double(s.decay);
    }
    case Kind::kInverseSqrt:
      return s.peak * std::sqrt(double(s.hold) / double(std::max(k, s.hold)));
  }
  TOROID_CHECK_MSG(false, "no such schedule");
}

LearningRateSchedule PalmLearningRate() {
  return {.kind = Kind::kInverseSqrt, .peak = 1e-2, .hold = 10'000};
}

int64_t BatchRamp::Tokens(int64_t step) const {
  TOROID_CHECK(step >= 0 && step <= kLargest);
  int64_t tokens = 0;
  for (const Stage& stage : stages) {
    if (stage.first_step <= step) tokens = stage.tokens;
  }
  return tokens;
}

int64_t BatchRamp::TokensBefore(int64_t step) const {
  TOROID_CHECK(step >= 0 && step <= kLargest);
  int64_t tokens = 0;
  for (size_t i = 0; i < stages.size() && stages[i].first_step < step; ++i) {
    const int64_t end = i + 1 < stages.size() ? std::min(step, stages[i + 1].first_step) : step;
    tokens += (end - stages[i].first_step) * stages[i].tokens;
  }
  return tokens;
}

absl::Status Validate(const BatchRamp& ramp, int64_t sequence_length) {
  if (sequence_length < 1 || sequence_length >= kLargest) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence length: ", sequence_length, "; it must lie in 1 to ", kLargest - 1));
  }
  if (ramp.stages.empty() || ramp.stages[0].first_step != 0) {
    return absl::InvalidArgumentError("batch tokens: the first stage must begin at step 0");
  }
  for (size_t i = 0; i < ramp.stages.size(); ++i) {
    const BatchRamp::Stage& stage = ramp.stages[i];
    const std::string where = absl::StrCat("batch tokens from step ", stage.first_step, ": ");
    if (i > 0 && stage.first_step <= ramp.stages[i - 1].first_step) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, "stages must ascend; the one before begins at ", ramp.stages[i - 1].first_step));
    }
    if (stage.first_step > kLargest || stage.tokens > kLargest) {
      return absl::InvalidArgumentError(absl::StrCat(where, "more than 2^31"));
    }
    if (stage.tokens < 1 || stage.tokens % sequence_length != 0) {
      const int64_t below = std::max<int64_t>(stage.tokens, 0) / sequence_length * sequence_length;
      return absl::InvalidArgumentError(absl::StrCat(
          where, stage.tokens, " are no whole sequences of ", sequence_length, "; take ",
          below > 0 ? absl::StrCat(below, " or ") : "", below + sequence_length));
    }
  }
  return absl::OkStatus();
}

BatchRamp PalmBatchRamp() {
  return {{{0, 512 * 2048}, {50'000, 1024 * 2048}, {115'000, 2048 * 2048}}};
}

}  // namespace toroid
