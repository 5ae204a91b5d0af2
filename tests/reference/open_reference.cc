#include "tests/reference/open_reference.h"

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "core/check.h"
#include "core/io/weights.h"
#include "core/model/params.h"
#include "core/model/rope.h"

namespace toroid {

ReferenceParams LoadReference(const ModelSource& source, int64_t layers) {
  ReferenceParams params;
  for (const ParamSpec& spec : ParamTable(source.config)) {
    if (!spec.alias.empty() || (layers >= 0 && spec.layer >= layers)) continue;
    std::vector<double>& values = params[spec.name];
    values.resize(spec.rows * spec.cols);
    const absl::Status status =
        LoadParam(source, spec, {0, spec.rows, 0, spec.cols}, DType::kF64, values.data());
    TOROID_CHECK_MSG(status.ok(), status.ToString());
  }
  return params;
}

ReferenceModel OpenReference(const std::string& path, int64_t layers, uint64_t seed) {
  const auto source = OpenModel(path, seed);
  TOROID_CHECK_MSG(source.ok(), source.status().ToString());
  return {source->config, LoadReference(*source, layers)};
}

ReferenceInput ReferenceInputOf(const ModelConfig& config, std::vector<int32_t> ids,
                                int64_t length_bound) {
  const RopeFrequencies rope = Rope(config, length_bound > 0 ? length_bound : int64_t(ids.size()));
  ReferenceInput input;
  input.ids = std::move(ids);
  input.inv_freq = rope.inv_freq;
  input.rope_scale = rope.attention_scale;
  return input;
}

std::string SmolLm2Path() {
  namespace fs = std::filesystem;
  const char* models = std::getenv("TOROID_MODELS");
  const char* home = std::getenv("HOME");
  fs::path root = models != nullptr
                      ? fs::path(models)
                      : fs::path(home != nullptr ? home : "") / ".cache/toroid/models";
  const fs::path file = root / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf";
  std::error_code error;
  return fs::exists(file, error) ? file.string() : "";
}

}  // namespace toroid
