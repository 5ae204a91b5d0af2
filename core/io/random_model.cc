#include "core/io/random_model.h"

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/io/model_source.h"
#include "core/random.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

// Mean 0, deviation 1: the sum of eight 16-bit uniforms, centred and scaled, so within 4.9
// deviations (Irwin-Hall; excess kurtosis -0.15). A sum of integers has the same bits on every
// processor, which log and cos of different libraries have not.
double Normal(uint64_t seed, uint64_t stream, uint64_t index) {
  constexpr double kDeviation = 53509.91992145008;  // sqrt(8 (2^32 - 1) / 12)
  int64_t sum = 0;
  for (const uint32_t word : Philox(seed, index, stream)) sum += (word & 0xffff) + (word >> 16);
  return (double(sum) - 8 * 32767.5) / kDeviation;
}

bool IsVector(const ParamSpec& spec) { return spec.group == "norm" || spec.group == "bias"; }
double Mean(const ParamSpec& spec) { return spec.group == "norm" ? 1.0 : 0.0; }

void DrawRow(uint64_t seed, const ParamSpec& spec, double deviation, int64_t row, int64_t col_begin,
             int64_t count, float* out) {
  const uint64_t stream = HashName(spec.name.data(), spec.name.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = row * spec.cols + col_begin + i;
    out[i] = float(Mean(spec) + deviation * Normal(seed, stream, uint64_t(index)));
  }
}

absl::StatusOr<ModelSource> OpenShape(absl::string_view kind, const std::string& name,
                                      uint64_t seed) {
  ModelSource source;
  TOROID_ASSIGN_OR_RETURN(source.config, RandomShape(name));
  source.path = absl::StrCat(kind, ":", name);
  source.config.name = source.path;
  source.format = std::string(kind);
  source.random_seed = seed;
  source.tokenizer.kind = TokenizerSource::Kind::kBytes;
  return source;
}

}  // namespace

void RandomRow(uint64_t seed, const ParamSpec& spec, int64_t row, int64_t col_begin, int64_t count,
               float* out) {
  constexpr double kVectorDeviation = 0.1;
  DrawRow(seed, spec, IsVector(spec) ? kVectorDeviation : spec.init_deviation, row, col_begin,
          count, out);
}

double InitialDeviation(const ModelConfig& config, const ParamSpec& spec) {
  constexpr double kDeviation = 0.02;
  if (IsVector(spec)) return 0;
  if (config.architecture == "palm") {
    return spec.group == "embedding" ? 1.0 : 1 / std::sqrt(double(spec.cols));
  }
  const bool residual =
      absl::EndsWith(spec.name, ".o_proj.weight") || absl::EndsWith(spec.name, ".down_proj.weight");
  return residual ? kDeviation / std::sqrt(2 * double(config.layers)) : kDeviation;
}

void InitialRow(uint64_t seed, const ModelConfig& config, const ParamSpec& spec, int64_t row,
                int64_t col_begin, int64_t count, float* out) {
  DrawRow(seed, spec, InitialDeviation(config, spec), row, col_begin, count, out);
}

absl::StatusOr<ModelSource> OpenRandom(const std::string& name, uint64_t seed) {
  const size_t colon = name.find(':');
  if (colon == std::string::npos) return OpenShape("random", name, seed);
  constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenShape("random", name.substr(0, colon), seed));
  source.path = source.config.name = absl::StrCat("random:", name);
  for (const DType type : kTypes) {
    if (name.substr(colon + 1) == Info(type).name) source.random_type = type;
  }
  if (source.random_type.has_value()) return source;
  return absl::NotFoundError(
      absl::StrCat(name, ": no such type of weights; there are f32, bf16, ", "q8_0, q4_0, q4_1"));
}

absl::StatusOr<ModelSource> OpenPreset(const std::string& name, uint64_t seed) {
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenShape("preset", name, seed));
  source.initial = true;
  return source;
}

}  // namespace toroid
