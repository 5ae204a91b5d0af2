#include "core/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/random.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargestLogit = 1e300;  // beyond any float; penalties cannot make it infinite

absl::Status OutOfRange(const char* field, double value, const char* range) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ": must be ", range));
}

// Falling z; among equals ascending id.
constexpr auto kBefore = [](const auto& a, const auto& b) {
  return a.z != b.z ? a.z > b.z : a.id < b.id;
};
constexpr auto kById = [](const auto& a, const auto& b) { return a.id < b.id; };

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
  sampler.logits_.resize(vocab);
  const bool penalised = params.repetition_penalty != 1 || params.presence_penalty != 0 ||
                         params.frequency_penalty != 0;
  if (penalised) sampler.output_count_.assign(vocab, -1);
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
  return SampleRow(logits, position);
}

absl::StatusOr<Sampled> Sampler::Sample(std::span<const double> logits, int64_t position) {
  return SampleRow(logits, position);
}

template <typename T>
absl::StatusOr<Sampled> Sampler::SampleRow(std::span<const T> logits, int64_t position) {
  TOROID_CHECK_EQ(int64_t(logits.size()), vocab_);
  TOROID_CHECK_GE(position, 0);
  double largest = -kInfinity;
  for (int64_t i = 0; i < vocab_; ++i) {
    const double l = logits[i];
    if (!(std::abs(l) <= kLargestLogit)) {
      return absl::InternalError(absl::StrCat("logit of id ", i, " at position ", position, " is ",
                                              l, ": the model's numbers are broken"));
    }
    logits_[i] = l;
    largest = std::max(largest, l);
  }
  double sum = 0;
  for (double l : logits_) sum += std::exp(l - largest);
  Penalise();
  Sampled sampled = params_.temperature == 0 ? Greedy() : Draw(position);
  sampled.log_p = double(logits[sampled.id]) - (largest + std::log(sum));
  return sampled;
}

void Sampler::Penalise() {
  for (int32_t id : seen_) {
    double& l = logits_[id];
    l = l > 0 ? l / params_.repetition_penalty : l * params_.repetition_penalty;
    l -= params_.frequency_penalty * double(output_count_[id]);
    if (output_count_[id] > 0) l -= params_.presence_penalty;
  }
}

Sampled Sampler::Greedy() const {
  Sampled best;
  double first = logits_[0], second = -kInfinity;
  for (int64_t i = 1; i < vocab_; ++i) {
    if (logits_[i] > first) {
      second = first;
      first = logits_[i];
      best.id = int32_t(i);
    } else {
      second = std::max(second, logits_[i]);
    }
  }
  best.margin = first - second;
  return best;
}

Sampled Sampler::Draw(int64_t position) {
  // Relative to the largest before dividing: no temperature, however small, can overflow.
  const double largest = *std::max_element(logits_.begin(), logits_.end());
  candidates_.clear();
  candidates_.reserve(vocab_);
  for (int64_t i = 0; i < vocab_; ++i) {
    candidates_.push_back({int32_t(i), (logits_[i] - largest) / params_.temperature, 0});
  }
  if (params_.top_k > 0 && params_.top_k < vocab_) KeepTopK();
  for (Candidate& c : candidates_) c.weight = std::exp(c.z);
  if (params_.top_p < 1) KeepTopP();
  // The largest weight is 1: e^0.
  std::erase_if(candidates_, [this](const Candidate& c) { return c.weight < params_.min_p; });

  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double u = UniformDouble(Philox(params_.seed, uint64_t(position), sequence_));
  double edge = 0;
  size_t chosen = 0;
  while (chosen + 1 < candidates_.size() && edge + candidates_[chosen].weight <= u * total) {
    edge += candidates_[chosen++].weight;
  }
  const bool first = chosen == 0, last = chosen + 1 == candidates_.size();
  const double below = first ? kInfinity : u - edge / total;
  const double above = last ? kInfinity : (edge + candidates_[chosen].weight) / total - u;
  return {candidates_[chosen].id, 0, std::min(below, above)};
}

void Sampler::KeepTopK() {
  const auto end = candidates_.begin() + params_.top_k;
  std::nth_element(candidates_.begin(), end, candidates_.end(), kBefore);
  candidates_.erase(end, candidates_.end());
  std::sort(candidates_.begin(), candidates_.end(), kById);
}

// Halves the undecided range until nothing is undecided: linear time, where sorting would not be.
void Sampler::KeepTopP() {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  // Ids lighter than this weigh together less than (1 - top_p) total: none can stay.
  const double least = (1 - params_.top_p) * total / double(candidates_.size());
  std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < least; });
  // All before `begin`, whose mass is `mass`, stay; all from `end` on go.
  auto begin = candidates_.begin(), end = candidates_.end();
  double mass = 0;
  while (begin != end) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, kBefore);
    double half = 0;
    for (auto c = begin; c != middle; ++c) half += c->weight;
    if (mass + half >= params_.top_p * total) {
      end = middle;
    } else {
      mass += half + middle->weight;
      begin = middle + 1;
    }
  }
  candidates_.erase(end, candidates_.end());
  std::sort(candidates_.begin(), candidates_.end(), kById);
}

}  // namespace toroid
