// A model's files as REF64 wants them. Reading goes through core/io, which has tests of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/io/model_source.h"
#include "tests/reference/model.h"

namespace toroid {

struct ReferenceModel {
  ModelConfig config;
  ReferenceParams params;
};

// Every parameter in double; with layers >= 0 only the first layers', the others are left out. An
// error ends the test program with its line.
ReferenceModel OpenReference(const std::string& path, int64_t layers = -1, uint64_t seed = 0);
ReferenceParams LoadReference(const ModelSource& source, int64_t layers = -1);

// Input with the model's RoPE for a request that can reach length_bound tokens (0: as many as ids).
ReferenceInput ReferenceInputOf(const ModelConfig& config, std::vector<int32_t> ids,
                                int64_t length_bound = 0);

// The GGUF file of SmolLM2-135M-Instruct, under $TOROID_MODELS or ~/.cache/toroid/models; empty if
// it is not there.
std::string SmolLm2Path();

}  // namespace toroid
