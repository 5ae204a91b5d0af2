#include "core/io/hugging_face_rope.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;
using Kind = RopeScaling::Kind;

// RoPE on a part of the head is not computed.
absl::Status CheckWholeHead(JsonFields& fields) {
  double part = 1.0;
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("partial_rotary_factor", 1.0, part));
  if (part == 1.0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(fields.where(), ": partial_rotary_factor = ", part,
                                               ": toroid turns whole heads, as 1 says"));
}

absl::Status ReadKind(JsonFields& fields, Kind& kind) {
  std::string type, old_type;
  TOROID_RETURN_IF_ERROR(fields.StringOr("type", "default", old_type));
  TOROID_RETURN_IF_ERROR(fields.StringOr("rope_type", old_type, type));
  constexpr std::pair<absl::string_view, Kind> kKinds[] = {{"default", Kind::kNone},
                                                           {"linear", Kind::kLinear},
                                                           {"dynamic", Kind::kDynamic},
                                                           {"yarn", Kind::kYarn},
                                                           {"llama3", Kind::kLlama3}};
  for (const auto& [name, known] : kKinds) {
    if (name != type) continue;
    kind = known;
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat(fields.where(), ": rope_type = ", type,
                   ": toroid computes default, linear, dynamic, yarn and llama3"));
}

absl::Status ReadYarn(JsonFields& fields, const ModelConfig& config, RopeScaling& rope) {
  if (!fields.Has("factor")) {
    rope.factor = double(config.context) / double(std::max<int64_t>(rope.original_context, 1));
  }
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("attention_factor", 0.0, rope.attention_factor));
  if (fields.Has("attention_factor") && !(rope.attention_factor > 0)) {
    return fields.Wrong("attention_factor", "must be above 0");
  }
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("beta_fast", 32.0, rope.beta_fast));
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("beta_slow", 1.0, rope.beta_slow));
  if (rope.beta_fast == 0) rope.beta_fast = 32.0;  // transformers: `or 32`
  if (rope.beta_slow == 0) rope.beta_slow = 1.0;
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("mscale", 0.0, rope.mscale));
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("mscale_all_dim", 0.0, rope.mscale_all_dim));
  return fields.BoolOr("truncate", true, rope.truncate);
}

// How far the scaling reaches: the trained context times the factor. Llama 3 states it as
// max_position_embeddings.
void Lengthen(ModelConfig& config) {
  const RopeScaling& rope = config.rope;
  const bool yarn = rope.kind == Kind::kYarn;
  if (!yarn && rope.kind != Kind::kLinear && rope.kind != Kind::kDynamic) return;
  const double reach = rope.factor * double(yarn ? rope.original_context : config.context);
  if (reach > 0 && reach < 0x1p32) {  // others are refused by Validate
    config.context = std::max(config.context, int64_t(reach));
  }
}

}  // namespace

absl::Status ReadRope(JsonFields& root, ModelConfig& config) {
  const json empty = json::object();
  const json* parameters = &empty;
  std::string name = "rope_parameters";
  for (const char* key : {"rope_parameters", "rope_scaling"}) {  // the later wins
    const json* found = root.Find(key);
    if (found == nullptr || found->empty()) continue;
    if (!found->is_object()) return root.Wrong(key, "must be an object");
    parameters = found;
    name = key;
  }
  JsonFields fields(*parameters, absl::StrCat(root.where(), ": ", name));
  TOROID_RETURN_IF_ERROR(CheckWholeHead(root));
  TOROID_RETURN_IF_ERROR(CheckWholeHead(fields));
  double theta = 0;
  TOROID_RETURN_IF_ERROR(root.DoubleOr("rope_theta", 10000.0, theta));
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("rope_theta", theta, config.rope_base));
  RopeScaling& rope = config.rope;
  TOROID_RETURN_IF_ERROR(ReadKind(fields, rope.kind));
  if (rope.kind == Kind::kNone) return fields.RefuseOthers();

  if (rope.kind != Kind::kYarn && !fields.Has("factor"))
    return fields.Wrong("factor", "is missing");
  TOROID_RETURN_IF_ERROR(fields.DoubleOr("factor", 1.0, rope.factor));
  rope.original_context = config.context;  // dynamic takes no other
  if (rope.kind == Kind::kLlama3 || rope.kind == Kind::kYarn) {
    const char* key = "original_max_position_embeddings";
    TOROID_RETURN_IF_ERROR(fields.IntOr(key, config.context, rope.original_context));
    TOROID_RETURN_IF_ERROR(root.IntOr(key, rope.original_context, rope.original_context));
  }
  if (rope.kind == Kind::kYarn) TOROID_RETURN_IF_ERROR(ReadYarn(fields, config, rope));
  if (rope.kind == Kind::kLlama3) {
    for (const char* key : {"low_freq_factor", "high_freq_factor"}) {
      if (!fields.Has(key)) return fields.Wrong(key, "is missing");
    }
    TOROID_RETURN_IF_ERROR(fields.DoubleOr("low_freq_factor", 1.0, rope.low_freq_factor));
    TOROID_RETURN_IF_ERROR(fields.DoubleOr("high_freq_factor", 4.0, rope.high_freq_factor));
  }
  Lengthen(config);
  return fields.RefuseOthers();
}

}  // namespace toroid
