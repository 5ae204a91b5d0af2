// Models that a test can look at element by element.
#pragma once

#include <cstdint>

#include "core/model/model_config.h"

namespace toroid {

// Of a few hundred parameters, one KV head for two query heads.
inline ModelConfig SmallestModel() {
  ModelConfig config;
  config.name = "smallest";
  config.architecture = "llama";
  config.layers = 1;
  config.dim = 6;
  config.ffn = 6;
  config.query_heads = 2;
  config.kv_heads = 1;
  config.head_dim = 2;
  config.vocab = 5;
  config.context = 16;
  return config;
}

// Six query heads of 10 on two KV heads, which no number of ranks divides well, and biases.
inline ModelConfig AwkwardModel(int64_t layers, int64_t dim, int64_t ffn, int64_t vocab) {
  ModelConfig config;
  config.name = "awkward";
  config.architecture = "llama";
  config.layers = layers;
  config.dim = dim;
  config.ffn = ffn;
  config.query_heads = 6;
  config.kv_heads = 2;
  config.head_dim = 10;
  config.vocab = vocab;
  config.context = 64;
  config.qkv_bias = true;
  config.output_bias = true;
  return config;
}

}  // namespace toroid
