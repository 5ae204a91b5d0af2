#include "core/io/random_model.h"

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

}  // namespace

void RandomRow(uint64_t seed, const ParamSpec& spec, int64_t row, int64_t col_begin, int64_t count,
               float* out) {
  constexpr double kVectorDeviation = 0.1;
  const uint64_t stream = HashName(spec.name.data(), spec.name.size());
  const double mean = spec.group == "norm" ? 1.0 : 0.0;
  const bool vector = spec.group == "norm" || spec.group == "bias";
  const double deviation = vector ? kVectorDeviation : spec.init_deviation;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = row * spec.cols + col_begin + i;
    out[i] = float(mean + deviation * Normal(seed, stream, uint64_t(index)));
  }
}

absl::StatusOr<ModelSource> OpenRandom(const std::string& name, uint64_t seed) {
  ModelSource source;
  TOROID_ASSIGN_OR_RETURN(source.config, RandomShape(name));
  source.path = absl::StrCat("random:", name);
  source.config.name = source.path;
  source.format = "random";
  source.random_seed = seed;
  source.tokenizer.kind = TokenizerSource::Kind::kBytes;
  return source;
}

}  // namespace toroid
