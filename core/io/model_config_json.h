// A model's configuration as a JSON object of our own, in which checkpoints keep it. Included by
// .cc files alone, for it brings nlohmann's header.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "core/model/model_config.h"

namespace toroid {

nlohmann::json ModelConfigJson(const ModelConfig& config);
// A field that is absent keeps its default: the object was written before there was such a field.
// InvalidArgument if a field is unknown or of another kind, or the configuration is not valid;
// `where` begins every message.
absl::StatusOr<ModelConfig> ReadModelConfig(const nlohmann::json& object, const std::string& where);
// "dim: 64, here 96": the first field, the name left out, in which the two differ; empty if they do
// not.
std::string FirstDifference(const ModelConfig& stored, const ModelConfig& here);

}  // namespace toroid
