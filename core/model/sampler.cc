#include "core/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

absl::Status OutOfRange(const char* field, double value, const char* range) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ": must be ", range));
}

}  // namespace

// The conditions are written so that NaN fails them.
absl::Status SamplingParams::Validate() const {
  if (!(temperature >= 0 && temperature < kInfinity)) {
    return OutOfRange("temperature", temperature, ">= 0 and finite (0 = greedy)");
  }
  if (!(top_p > 0 && top_p <= 1)) return OutOfRange("top_p", top_p, "> 0 and <= 1 (1 = off)");
  if (top_k < 0) return OutOfRange("top_k", double(top_k), ">= 0 (0 = off)");
  if (!(min_p >= 0 && min_p <= 1)) return OutOfRange("min_p", min_p, ">= 0 and <= 1 (0 = off)");
  if (!(repetition_penalty >= 0.01 && repetition_penalty <= 100)) {
    return OutOfRange("repetition_penalty", repetition_penalty, "from 0.01 to 100 (1 = off)");
  }
  if (!(std::abs(presence_penalty) <= 2)) {
    return OutOfRange("presence_penalty", presence_penalty, "from -2 to 2 (0 = off)");
  }
  if (!(std::abs(frequency_penalty) <= 2)) {
    return OutOfRange("frequency_penalty", frequency_penalty, "from -2 to 2 (0 = off)");
  }
  return absl::OkStatus();
}

absl::StatusOr<Sampler> Sampler::Create(const SamplingParams& params, int64_t vocab,
                                        uint64_t sequence, std::span<const int32_t> prompt) {
  TOROID_CHECK_GE(vocab, 1);
  TOROID_RETURN_IF_ERROR(params.Validate());
  Sampler sampler(params, vocab, sequence);
  if (params.penalises()) sampler.output_count_.assign(vocab, -1);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab) {
      return absl::InvalidArgumentError(absl::StrCat("prompt id ", prompt[i], " at position ", i,
                                                     " is outside the vocabulary of ", vocab));
    }
    sampler.See(prompt[i]);
  }
  return sampler;
}

void Sampler::See(int32_t id) {
  if (output_count_.empty() || output_count_[id] >= 0) return;
  output_count_[id] = 0;
  seen_.push_back(id);
}

void Sampler::Append(int32_t id) {
  TOROID_CHECK(id >= 0 && id < vocab_);
  if (output_count_.empty()) return;
  See(id);
  ++output_count_[id];
}

absl::StatusOr<Sampled> Sampler::Sample(std::span<const float> logits, int64_t position) {
  return SampleOne(logits, position);
}

absl::StatusOr<Sampled> Sampler::Sample(std::span<const double> logits, int64_t position) {
  return SampleOne(logits, position);
}

SampleRow Sampler::Row(int64_t position) const {
  return {.temperature = params_.temperature,
          .top_p = params_.top_p,
          .min_p = params_.min_p,
          .top_k = params_.top_k,
          .seed = params_.seed,
          .sequence = sequence_,
          .position = position};
}

absl::StatusOr<Sampled> Sampler::Checked(const SampledRow& drawn, int64_t position) {
  if (drawn.id >= 0) return Sampled{int32_t(drawn.id), drawn.log_p, drawn.margin};
  return absl::InternalError(absl::StrCat("logit of id ", -1 - drawn.id, " at position ", position,
                                          " is ", drawn.log_p, ": the model's numbers are broken"));
}

template <typename T>
absl::StatusOr<Sampled> Sampler::SampleOne(std::span<const T> logits, int64_t position) {
  TOROID_CHECK_EQ(int64_t(logits.size()), vocab_);
  TOROID_CHECK_GE(position, 0);
  double log_z = 0;
  const int64_t broken = ReadLogits(logits.data(), vocab_, room_, &log_z);
  if (broken >= 0) return Checked({-1 - broken, double(logits[size_t(broken)]), 0}, position);
  Penalise();
  SampledRow drawn = Choose(Row(position), room_);
  drawn.log_p = double(logits[size_t(drawn.id)]) - log_z;
  return Checked(drawn, position);
}

void Sampler::Penalise() {
  for (int32_t id : seen_) {
    double& l = room_.logits[id];
    l = l > 0 ? l / params_.repetition_penalty : l * params_.repetition_penalty;
    l -= params_.frequency_penalty * double(output_count_[id]);
    if (output_count_[id] > 0) l -= params_.presence_penalty;
  }
}

}  // namespace toroid
