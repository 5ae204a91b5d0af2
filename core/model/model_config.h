// The shape of a model in plain numbers, validated once (Validate) and then trusted.
//
// Legend (README): D model, F feed-forward, H query heads, G KV heads, K head dim, V vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace toroid {

// How RoPE's frequencies are changed to reach beyond the trained context. Formulas in
// core/model/rope.h.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3, kYarn, kDynamic, kDivisors };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  int64_t original_context = 0;   // llama3, yarn; dynamic: the context before scaling
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0;        // yarn
  double beta_slow = 1.0;         // yarn
  double attention_factor = 0.0;  // yarn: scale of cos and sin; 0 = derived from factor and mscale
  double mscale = 0.0;            // yarn, 0 = absent
  double mscale_all_dim = 0.0;    // yarn, 0 = absent
  bool truncate = true;           // yarn: round the correction range to whole pairs
  std::vector<double> divisors = {};  // kDivisors, K/2 of them: tensor rope_freqs of a GGUF file
};

enum class NormKind {
  kRms,    // gain x / sqrt(mean(x^2) + epsilon)
  kLayer,  // gain (x - mean(x)) / sqrt(variance(x) + epsilon) + bias
};
enum class Activation {
  kSwiGlu,  // W2 (silu(W1 a) * W3 a)
  kGelu,    // W2 gelu(W3 a), gelu as Backend::Gelu
};
enum class PositionKind {
  kRope,     // of Q and K
  kLearned,  // a table [context, D], added to the embedding
};

struct ModelConfig {
  std::string name;          // shown to users: directory, file or preset name
  std::string architecture;  // "llama", "mistral", "qwen2", "qwen3", "palm", "gpt"
  int64_t layers = 0;        // L
  int64_t dim = 0;           // D
  int64_t ffn = 0;           // F
  int64_t query_heads = 0;   // H
  int64_t kv_heads = 0;      // G
  int64_t head_dim = 0;      // K; D == H * K is never assumed
  int64_t vocab = 0;         // V
  int64_t context = 0;       // longest sequence, tokens
  NormKind norm = NormKind::kRms;
  double norm_epsilon = 1e-5;
  Activation activation = Activation::kSwiGlu;
  bool parallel_block = false;  // PaLM: x += Attention(a) + MLP(a), a = norm(x)
  PositionKind positions = PositionKind::kRope;
  double rope_base = 10000.0;
  RopeScaling rope;
  bool qkv_bias = false;     // Qwen2
  bool output_bias = false;  // bias of the attention's output product
  bool mlp_bias = false;
  bool qk_norm = false;          // Qwen3: RMSNorm of each head of q and k before RoPE
  bool tied_embeddings = false;  // logits = h E^T
  double logit_scale = 1.0;      // of the logits; PaLM: 1 / sqrt(D)
  // Sliding window of each layer: a token sees itself and the window - 1 before it; 0 = all before
  // it.
  std::vector<int64_t> windows;  // size layers

  int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows[layer]; }

  // Every number in range and consistent; the error names the field and the rule.
  absl::Status Validate() const;
  // Parameters counted once (a tied embedding once).
  int64_t ParameterCount() const;
};

}  // namespace toroid
