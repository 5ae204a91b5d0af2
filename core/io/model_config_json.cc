#include "core/io/model_config_json.h"

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/io/json_fields.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;

// The one list of fields. A field added to the struct is added here, with a default that means what
// was before it.
template <typename Rope, typename Visit>
void VisitRope(Rope& rope, Visit&& visit) {
  visit("kind", rope.kind);
  visit("factor", rope.factor);
  visit("original_context", rope.original_context);
  visit("low_freq_factor", rope.low_freq_factor);
  visit("high_freq_factor", rope.high_freq_factor);
  visit("beta_fast", rope.beta_fast);
  visit("beta_slow", rope.beta_slow);
  visit("attention_factor", rope.attention_factor);
  visit("mscale", rope.mscale);
  visit("mscale_all_dim", rope.mscale_all_dim);
  visit("truncate", rope.truncate);
  visit("divisors", rope.divisors);
}

template <typename Config, typename Visit>
void VisitConfig(Config& config, Visit&& visit) {
  visit("name", config.name);
  visit("architecture", config.architecture);
  visit("layers", config.layers);
  visit("dim", config.dim);
  visit("ffn", config.ffn);
  visit("query_heads", config.query_heads);
  visit("kv_heads", config.kv_heads);
  visit("head_dim", config.head_dim);
  visit("vocab", config.vocab);
  visit("context", config.context);
  visit("norm", config.norm);
  visit("norm_epsilon", config.norm_epsilon);
  visit("activation", config.activation);
  visit("parallel_block", config.parallel_block);
  visit("positions", config.positions);
  visit("rope_base", config.rope_base);
  visit("rope", config.rope);
  visit("qkv_bias", config.qkv_bias);
  visit("output_bias", config.output_bias);
  visit("mlp_bias", config.mlp_bias);
  visit("qk_norm", config.qk_norm);
  visit("tied_embeddings", config.tied_embeddings);
  visit("logit_scale", config.logit_scale);
  visit("windows", config.windows);
}

template <typename T>
json ToJson(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return int(value);
  } else {
    return value;
  }
}
template <>
json ToJson(const RopeScaling& rope) {
  json object = json::object();
  VisitRope(rope, [&](const char* key, const auto& value) { object[key] = ToJson(value); });
  return object;
}

// The last value of each enumeration, which are kept as their numbers.
constexpr RopeScaling::Kind LastOf(RopeScaling::Kind) { return RopeScaling::Kind::kDivisors; }
constexpr NormKind LastOf(NormKind) { return NormKind::kLayer; }
constexpr Activation LastOf(Activation) { return Activation::kGelu; }
constexpr PositionKind LastOf(PositionKind) { return PositionKind::kLearned; }
// True if `value` is what ToJson writes of a T.
template <typename T>
bool Take(const json& value, T& out) {
  if constexpr (std::is_enum_v<T>) {
    int64_t number = -1;
    if (!TakeJson(value, number) || number < 0 || number > int64_t(LastOf(T()))) return false;
    out = T(number);
    return true;
  } else {
    return TakeJson(value, out);
  }
}

// Visits fields and gives them what a JSON object says; one that is absent keeps its default.
struct FieldReader {
  const json& object;
  const std::string& where;
  size_t seen = 0;
  absl::Status status;

  template <typename T>
  void operator()(const char* key, T& out) {
    const auto found = object.find(key);
    if (!status.ok() || found == object.end()) return;
    ++seen;
    if constexpr (std::is_same_v<T, RopeScaling>) {
      const std::string inner = absl::StrCat(where, ": ", key);
      FieldReader reader{*found, inner};
      VisitRope(out, reader);
      status = reader.Done();
    } else if (!Take(*found, out)) {
      status = absl::InvalidArgumentError(
          absl::StrCat(where, ": ", key, " = ", Shown(*found), ": of another kind"));
    }
  }
  absl::Status Done() const {
    if (!status.ok() || seen == object.size()) return status;
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": ", object.size() - seen, " fields are not known: a newer toroid wrote this"));
  }
};

}  // namespace

json ModelConfigJson(const ModelConfig& config) {
  json object = json::object();
  VisitConfig(config, [&](const char* key, const auto& value) { object[key] = ToJson(value); });
  return object;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const json& object, const std::string& where) {
  ModelConfig config;
  FieldReader reader{object, where};
  VisitConfig(config, reader);
  TOROID_RETURN_IF_ERROR(reader.Done());
  const absl::Status valid = config.Validate();
  if (!valid.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", valid.message()));
  }
  return config;
}

std::string FirstDifference(const ModelConfig& stored, const ModelConfig& here) {
  const json other = ModelConfigJson(here);
  std::string difference;
  VisitConfig(stored, [&](const char* key, const auto& value) {
    const json own = ToJson(value);
    if (!difference.empty() || std::string(key) == "name" || own == other[key]) return;
    difference = absl::StrCat(key, ": ", Shown(own), ", here ", Shown(other[key]));
  });
  return difference;
}

}  // namespace toroid
