#include "core/io/random_model.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/model_source.h"
#include "core/random.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

ModelConfig Shape(const char* name, const char* architecture, int64_t layers, int64_t dim,
                  int64_t ffn, int64_t query_heads, int64_t kv_heads, int64_t head_dim,
                  int64_t vocab, int64_t context) {
  ModelConfig config;
  config.name = name;
  config.architecture = architecture;
  config.layers = layers;
  config.dim = dim;
  config.ffn = ffn;
  config.query_heads = query_heads;
  config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.vocab = vocab;
  config.context = context;
  return config;
}

std::vector<ModelConfig> MakeShapes() {
  constexpr int64_t kMillion = 1048576;
  //                                                 L   D     F     H   G   K   V      context
  ModelConfig tiny_1m = Shape("tiny-1m", "llama", 2, 256, 2176, 4, 2, 64, 512, kMillion);
  ModelConfig mha = Shape("tiny-mha", "llama", 2, 64, 128, 4, 4, 16, 320, 32768);
  ModelConfig gqa = Shape("tiny-gqa", "llama", 2, 96, 160, 9, 3, 16, 320, 32768);
  ModelConfig mqa = Shape("tiny-mqa", "llama", 2, 64, 128, 6, 1, 16, 320, 32768);
  ModelConfig mistral = Shape("tiny-mistral", "mistral", 2, 64, 128, 4, 2, 16, 320, 32768);
  ModelConfig qwen2 = Shape("tiny-qwen2", "qwen2", 2, 64, 128, 4, 2, 16, 320, 32768);
  ModelConfig qwen3 = Shape("tiny-qwen3", "qwen3", 2, 64, 128, 4, 2, 32, 320, 32768);
  ModelConfig m124 = Shape("124m", "llama", 12, 768, 2048, 12, 12, 64, 50304, 131072);
  ModelConfig b1 = Shape("1.1b", "llama", 22, 2048, 5632, 32, 4, 64, 32000, 131072);
  tiny_1m.rope_base = 1e6;
  mistral.windows = {64, 64};
  qwen2.qkv_bias = true;
  qwen2.windows = {0, 48};
  qwen3.qk_norm = true;
  for (ModelConfig* tied : {&mqa, &qwen2, &m124}) tied->tied_embeddings = true;
  m124.rope_base = b1.rope_base = 500000;
  return {tiny_1m, mha, gqa, mqa, mistral, qwen2, qwen3, m124, b1};
}

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

const std::vector<ModelConfig>& RandomShapes() {
  static const std::vector<ModelConfig>* const shapes = new std::vector<ModelConfig>(MakeShapes());
  return *shapes;
}

absl::StatusOr<ModelConfig> RandomShape(const std::string& name) {
  std::vector<std::string> names;
  for (const ModelConfig& shape : RandomShapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  return absl::NotFoundError(
      absl::StrCat("random:", name, ": no such shape; there are ", absl::StrJoin(names, ", ")));
}

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
