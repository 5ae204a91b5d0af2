// The rotary part of a config.json; used by hugging_face_config.cc alone.
#pragma once

#include "absl/status/status.h"
#include "core/io/json_fields.h"
#include "core/model/model_config.h"

namespace toroid {

// Fills rope_base and rope, and lengthens the context where the scaling says how far it reaches.
// Understands `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before);
// where both are given rope_scaling wins, as it does there. REQUIRES: head_dim and context are
// read.
absl::Status ReadRope(JsonFields& fields, ModelConfig& config);

}  // namespace toroid
