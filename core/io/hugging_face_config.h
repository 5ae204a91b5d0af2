// config.json and generation_config.json of a Hugging Face model directory, read as transformers 5
// reads them for LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and
// GPT2LMHeadModel.
//
// No key is skipped in silence. A key is understood, or known to be harmless for inference (tables
// in the .cc), or refused by name unless its value is null, false, zero or empty: an unknown key
// may change the mathematics, and a wrong model that runs is worse than one that does not.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/model_source.h"
#include "core/model/model_config.h"

namespace toroid {

// The validated configuration (name left empty). `where` (the path) begins every message.
// InvalidArgument: no JSON, a missing key, a value of the wrong kind or out of range.
// Unimplemented: an architecture (the known ones are listed) or a key that toroid does not compute.
absl::StatusOr<ModelConfig> HuggingFaceConfig(absl::string_view json, const std::string& where);

// eos_token_id, temperature and their like, from either file. Keys that are absent or null stay
// empty; other keys are ignored.
absl::StatusOr<GenerationDefaults> HuggingFaceGeneration(absl::string_view json,
                                                         const std::string& where);

// The other way round (hugging_face_config_text.cc). config.json of a model whose tensors are
// stored as `dtype` (kF32 or kBF16): HuggingFaceConfig reads the same configuration from it.
// Unimplemented naming the field if none of the five classes computes it.
absl::StatusOr<std::string> HuggingFaceConfigText(const ModelSource& source, DType dtype);
std::string HuggingFaceGenerationText(const GenerationDefaults& generation);

}  // namespace toroid
