#include "core/model/model_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/model/params.h"

namespace toroid {
namespace {

// Bounds far above any model, low enough that products of three of them stay below 2^63 and that a
// lying file cannot ask for a large table.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHeadDim = 8192;
constexpr int64_t kMaxContext = int64_t{1} << 32;
constexpr int64_t kMaxLearnedPositions = int64_t{1} << 24;
constexpr double kMaxFactor =
    1e6;  // of a RoPE scaling: beyond it factor - (factor - 1) is no longer 1

absl::Status Wrong(absl::string_view field, double value, absl::string_view rule) {
  return absl::InvalidArgumentError(
      absl::StrCat("model configuration: ", field, " = ", value, ": must be ", rule));
}

absl::Status InRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("model configuration: ", field, " = ", value,
                                                 ": must be between ", low, " and ", high));
}

bool Positive(double x) { return std::isfinite(x) && x > 0; }

absl::Status ValidateRope(const ModelConfig& config) {
  const RopeScaling& rope = config.rope;
  using Kind = RopeScaling::Kind;
  if (!(Positive(config.rope_base) && config.rope_base > 1)) {
    return Wrong("rope_theta", config.rope_base, "finite and above 1");
  }
  if (rope.kind == Kind::kNone) return absl::OkStatus();
  if (rope.kind == Kind::kDivisors) {
    if (int64_t(rope.divisors.size()) != config.head_dim / 2) {
      return Wrong("number of rope frequency divisors", double(rope.divisors.size()),
                   "half of the head dimension");
    }
    for (const double divisor : rope.divisors) {
      if (!Positive(divisor)) return Wrong("rope frequency divisor", divisor, "finite and above 0");
    }
    return absl::OkStatus();
  }
  if (!(rope.factor >= 1 && rope.factor <= kMaxFactor)) {
    return Wrong("rope scaling factor", rope.factor, "between 1 and 1e6");
  }
  if (rope.kind == Kind::kLinear) return absl::OkStatus();
  if (rope.original_context < 1 || rope.original_context > kMaxContext) {
    return Wrong("original_max_position_embeddings", double(rope.original_context), "at least 1");
  }
  if (rope.kind == Kind::kDynamic && config.head_dim <= 2) {
    return Wrong("head_dim", double(config.head_dim), "above 2 with dynamic rope scaling");
  }
  if (rope.kind == Kind::kLlama3) {
    if (!Positive(rope.low_freq_factor)) {
      return Wrong("low_freq_factor", rope.low_freq_factor, "finite and above 0");
    }
    if (!(Positive(rope.high_freq_factor) && rope.high_freq_factor > rope.low_freq_factor)) {
      return Wrong("high_freq_factor", rope.high_freq_factor, "above low_freq_factor");
    }
  }
  if (rope.kind == Kind::kYarn) {
    if (!Positive(rope.beta_slow)) return Wrong("beta_slow", rope.beta_slow, "above 0");
    if (!(Positive(rope.beta_fast) && rope.beta_fast >= rope.beta_slow)) {
      return Wrong("beta_fast", rope.beta_fast, "at least beta_slow");
    }
    for (const double scale : {rope.attention_factor, rope.mscale, rope.mscale_all_dim}) {
      if (!(scale >= 0 && scale <= kMaxFactor)) {
        return Wrong("attention_factor or mscale", scale, "between 0 and 1e6");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ModelConfig::Validate() const {
  struct Bound {
    absl::string_view field;
    int64_t value, low, high;
  };
  const Bound bounds[] = {
      {"layers", layers, 1, kMaxLayers},
      {"hidden size", dim, 2, kMaxWidth},
      {"feed-forward size", ffn, 2, kMaxWidth * 8},
      {"query heads", query_heads, 1, kMaxWidth},
      {"KV heads", kv_heads, 1, query_heads},
      {"head dimension", head_dim, 2, kMaxHeadDim},
      {"vocabulary size", vocab, 2, kMaxVocab},
      {"context", context, 1, kMaxContext},
  };
  for (const Bound& bound : bounds) {
    const absl::Status status = InRange(bound.field, bound.value, bound.low, bound.high);
    if (!status.ok()) return status;
  }
  if (query_heads % kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("model configuration: query heads = ", query_heads,
                     ": must be a multiple of the KV heads, ", kv_heads));
  }
  if (head_dim % 2 != 0) {
    return Wrong("head dimension", double(head_dim), "even, because RoPE turns pairs");
  }
  if (!Positive(norm_epsilon)) return Wrong("rms_norm_eps", norm_epsilon, "finite and above 0");
  if (positions == PositionKind::kLearned && context > kMaxLearnedPositions) {
    return Wrong("context", double(context), "at most 2^24 with learned positions");
  }
  if (!Positive(logit_scale)) return Wrong("logit scale", logit_scale, "finite and above 0");
  if (!windows.empty() && int64_t(windows.size()) != layers) {
    return Wrong("number of sliding windows", double(windows.size()), "the number of layers");
  }
  for (const int64_t window : windows) {
    if (window < 0 || window > kMaxContext) {
      return Wrong("sliding_window", double(window), "at least 1, or null for none");
    }
  }
  return ValidateRope(*this);
}

int64_t ModelConfig::ParameterCount() const {
  int64_t count = 0;
  for (const ParamSpec& spec : ParamTable(*this)) {
    if (spec.alias.empty()) count += spec.rows * spec.cols;
  }
  return count;
}

}  // namespace toroid
