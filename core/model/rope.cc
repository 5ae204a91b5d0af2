#include "core/model/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/check.h"

namespace toroid {
namespace {

using std::numbers::pi;

std::vector<double> PlainFrequencies(double base, int64_t head_dim) {
  std::vector<double> inv_freq(head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    inv_freq[i] = 1.0 / std::pow(base, double(2 * i) / double(head_dim));
  }
  return inv_freq;
}

// NTK-aware scaling (dynamic): base' = base (factor S / C - (factor - 1))^(K / (K - 2)), S >= C.
double DynamicBase(const ModelConfig& config, int64_t length_bound) {
  const double context = double(config.rope.original_context);
  const double length = std::max(double(length_bound), context);
  const double head_dim = double(config.head_dim);
  return config.rope_base *
         std::pow(config.rope.factor * length / context - (config.rope.factor - 1),
                  head_dim / (head_dim - 2));
}

// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
void ScaleLlama3(const RopeScaling& rope, std::vector<double>& inv_freq) {
  const double context = double(rope.original_context);
  const double long_wave = context / rope.low_freq_factor;
  const double short_wave = context / rope.high_freq_factor;
  for (double& frequency : inv_freq) {
    const double wave = 2 * pi / frequency;
    if (wave < short_wave) continue;
    if (wave > long_wave) {
      frequency /= rope.factor;
      continue;
    }
    const double smooth =
        (context / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency;
  }
}

// YaRN (2309.00071): the pair that turns `rotations` times within the original context.
double CorrectionPair(const ModelConfig& config, double rotations) {
  return double(config.head_dim) *
         std::log(double(config.rope.original_context) / (rotations * 2 * pi)) /
         (2 * std::log(config.rope_base));
}

// Pairs below `low` keep their frequency, pairs above `high` are divided by the factor, a ramp
// between.
void ScaleYarn(const ModelConfig& config, std::vector<double>& inv_freq) {
  const RopeScaling& rope = config.rope;
  double low = CorrectionPair(config, rope.beta_fast);
  double high = CorrectionPair(config, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, double(config.head_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / rope.factor * ramp + inv_freq[i] * (1 - ramp);
  }
}

double YarnAttentionScale(const RopeScaling& rope) {
  if (rope.attention_factor > 0) return rope.attention_factor;
  const auto scale = [&](double mscale) {
    return rope.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(rope.factor) + 1.0;
  };
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return scale(rope.mscale) / scale(rope.mscale_all_dim);
  }
  return scale(1.0);
}

}  // namespace

int64_t RopeReach(const ModelConfig& config) {
  const bool dynamic = config.rope.kind == RopeScaling::Kind::kDynamic;
  return dynamic ? std::numeric_limits<int64_t>::max() : config.context;
}

RopeFrequencies Rope(const ModelConfig& config, int64_t length_bound) {
  const RopeScaling& rope = config.rope;
  const bool dynamic = rope.kind == RopeScaling::Kind::kDynamic;
  const double base = dynamic ? DynamicBase(config, length_bound) : config.rope_base;
  RopeFrequencies result{PlainFrequencies(base, config.head_dim), 1.0};
  switch (rope.kind) {
    case RopeScaling::Kind::kNone:
    case RopeScaling::Kind::kDynamic:
      break;
    case RopeScaling::Kind::kLinear:
      for (double& frequency : result.inv_freq) frequency /= rope.factor;
      break;
    case RopeScaling::Kind::kLlama3:
      ScaleLlama3(rope, result.inv_freq);
      break;
    case RopeScaling::Kind::kYarn:
      ScaleYarn(config, result.inv_freq);
      result.attention_scale = YarnAttentionScale(rope);
      break;
    case RopeScaling::Kind::kDivisors:
      TOROID_CHECK_EQ(rope.divisors.size(), result.inv_freq.size());
      for (size_t i = 0; i < rope.divisors.size(); ++i) result.inv_freq[i] /= rope.divisors[i];
      break;
  }
  return result;
}

}  // namespace toroid
