// The built-in table of shapes: declared in random_model.h.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/random_model.h"

namespace toroid {
namespace {

constexpr int64_t kMillion = 1048576;

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

void AddLlamas(std::vector<ModelConfig>& shapes) {
  //                                                 L   D     F     H   G   K   V      context
  ModelConfig tiny_1m = Shape("tiny-1m", "llama", 2, 256, 2176, 4, 2, 64, 512, kMillion);
  ModelConfig mha = Shape("tiny-mha", "llama", 2, 64, 128, 4, 4, 16, 320, 32768);
  ModelConfig gqa = Shape("tiny-gqa", "llama", 2, 96, 160, 9, 3, 16, 320, 32768);
  ModelConfig mqa = Shape("tiny-mqa", "llama", 2, 64, 128, 6, 1, 16, 320, 32768);
  ModelConfig mistral = Shape("tiny-mistral", "mistral", 2, 64, 128, 4, 2, 16, 320, 32768);
  ModelConfig qwen2 = Shape("tiny-qwen2", "qwen2", 2, 64, 128, 4, 2, 16, 320, 32768);
  ModelConfig qwen3 = Shape("tiny-qwen3", "qwen3", 2, 64, 128, 4, 2, 32, 320, 32768);
  ModelConfig smollm2 = Shape("smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192);
  ModelConfig m124 = Shape("124m", "llama", 12, 768, 2048, 12, 12, 64, 50304, 131072);
  ModelConfig b1 = Shape("1.1b", "llama", 22, 2048, 5632, 32, 4, 64, 32000, 131072);
  ModelConfig b12 = Shape("llama-1.2b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072);
  ModelConfig b8 = Shape("llama3-8b", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 8192);
  tiny_1m.rope_base = 1e6;
  smollm2.rope_base = 100000;
  mistral.windows = {64, 64};
  qwen2.qkv_bias = true;
  qwen2.windows = {0, 48};
  qwen3.qk_norm = true;
  for (ModelConfig* tied : {&mqa, &qwen2, &smollm2, &m124, &b12}) tied->tied_embeddings = true;
  for (ModelConfig* big : {&m124, &b1, &b12, &b8}) big->rope_base = 500000;
  shapes.insert(shapes.end(),
                {tiny_1m, mha, gqa, mqa, mistral, qwen2, qwen3, smollm2, m124, b1, b12, b8});
}

// Chowdhery et al. 2022 (2204.02311), table 1: one RMSNorm, parallel halves, one KV head, F = 4 D,
// no biases, logits / sqrt(D).
ModelConfig Palm(const char* name, int64_t layers, int64_t dim, int64_t heads, int64_t head_dim,
                 int64_t vocab, int64_t context) {
  ModelConfig config =
      Shape(name, "palm", layers, dim, 4 * dim, heads, 1, head_dim, vocab, context);
  config.norm_epsilon = 1e-6;
  config.parallel_block = true;
  config.tied_embeddings = true;
  config.logit_scale = 1 / std::sqrt(double(dim));
  return config;
}

// LayerNorm, GELU, learned positions, biases everywhere, F = 4 D (Radford et al. 2019). window > 0:
// layers alternate between dense and banded attention.
ModelConfig Gpt(const char* name, int64_t layers, int64_t dim, int64_t heads, int64_t head_dim,
                int64_t vocab, int64_t context, int64_t window) {
  ModelConfig config =
      Shape(name, "gpt", layers, dim, 4 * dim, heads, heads, head_dim, vocab, context);
  config.norm = NormKind::kLayer;
  config.activation = Activation::kGelu;
  config.positions = PositionKind::kLearned;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  config.tied_embeddings = true;
  for (int64_t layer = 0; window > 0 && layer < layers; ++layer) {
    config.windows.push_back(layer % 2 == 0 ? 0 : window);
  }
  return config;
}

void AddPalmsAndGpts(std::vector<ModelConfig>& shapes) {
  constexpr int64_t kPalmVocab = 256000, kGptVocab = 50257;
  //                            L    D      H   K   V           context
  shapes.push_back(Palm("palm-tiny", 2, 64, 6, 16, 320, 32768));
  shapes.push_back(Palm("palm-8b", 32, 4096, 16, 256, kPalmVocab, 2048));
  shapes.push_back(Palm("palm-62b", 64, 8192, 32, 256, kPalmVocab, 2048));
  shapes.push_back(Palm("palm-540b", 118, 18432, 48, 256, kPalmVocab, 2048));
  shapes.push_back(Gpt("gpt3-tiny", 4, 64, 6, 16, 320, 2048, 24));
  shapes.push_back(Gpt("gpt2-tiny", 2, 64, 4, 16, 320, 512, 0));
  shapes.push_back(Gpt("gpt2-124m", 12, 768, 12, 64, kGptVocab, 1024, 0));
  // Brown et al. 2020 (2005.14165), table 2.1 as printed: H K is not D in 1.3b and 13b. The width
  // of the bands was not published; 256 is ours.
  struct Size {
    const char* name;
    int64_t layers, dim, heads, head_dim;
  };
  const Size sizes[] = {{"gpt3-125m", 12, 768, 12, 64},  {"gpt3-350m", 24, 1024, 16, 64},
                        {"gpt3-760m", 24, 1536, 16, 96}, {"gpt3-1.3b", 24, 2048, 24, 128},
                        {"gpt3-2.7b", 32, 2560, 32, 80}, {"gpt3-6.7b", 32, 4096, 32, 128},
                        {"gpt3-13b", 40, 5140, 40, 128}, {"gpt3-175b", 96, 12288, 96, 128}};
  for (const Size& size : sizes) {
    shapes.push_back(
        Gpt(size.name, size.layers, size.dim, size.heads, size.head_dim, kGptVocab, 2048, 256));
  }
}

std::vector<ModelConfig> MakeShapes() {
  std::vector<ModelConfig> shapes;
  AddLlamas(shapes);
  AddPalmsAndGpts(shapes);
  return shapes;
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
      absl::StrCat(name, ": no such shape; there are ", absl::StrJoin(names, ", ")));
}

}  // namespace toroid
