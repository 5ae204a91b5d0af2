// REF64: the forward pass of Llama, PaLM and GPT blocks, dense and naive in double on one thread.
// The oracle of everything in core/model and parallel; itself checked against transformers'
// goldens.
//
// Written from the formulas, sharing no code with core: n x n attention, no blocks, no cache, no
// kernels. Biases, q/k norms and a separate head are used if and only if their parameters are
// given, so a parameter that the configuration forgot shows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/model/model_config.h"

namespace toroid {

// By Hugging Face name, row-major as stored: [outputs, inputs], or a vector.
using ReferenceParams = std::map<std::string, std::vector<double>>;

// What a layer computed, named as the taps of core/model/pass.h.
struct ReferenceTaps {
  std::vector<double> attention_in;   // [T, D] after the norm
  std::vector<double> query;          // [T, H, K] after RoPE, if there is any
  std::vector<double> key, value;     // [T, G, K] after RoPE
  std::vector<double> attention_out;  // [T, H, K] before the output product
  std::vector<double> mlp_in;         // [T, D] after the norm
  std::vector<double> mlp_out;        // [T, D] before it is added; a parallel block: of both halves
  std::vector<double> residual;       // [T, D] after the layer
};

struct ReferenceInput {
  std::vector<int32_t> ids;
  // RoPE turns pair (i, i + K / 2) of a head at position m by m * inv_freq[i], and multiplies by
  // rope_scale.
  std::vector<double> inv_freq;  // [K / 2]
  double rope_scale = 1.0;
  int64_t first_position = 0;  // of ids[0]
  int64_t layers = -1;         // stop after so many; -1 = all
  bool taps = false;
  bool logits = true;
};

struct ReferenceOutput {
  std::vector<ReferenceTaps> taps;  // one per layer, if asked for
  std::vector<double> residual;     // [T, D] after the last layer
  std::vector<double> logits;       // [T, V], if asked for
};

ReferenceOutput ReferenceForward(const ModelConfig& config, const ReferenceParams& params,
                                 const ReferenceInput& input);

// Logits [V] of one row [D] of the residual: final norm, then the head.
std::vector<double> ReferenceLogits(const ModelConfig& config, const ReferenceParams& params,
                                    const double* residual);

// log softmax(logits)[id]
double ReferenceLogP(const double* logits, int64_t vocab, int32_t id);

}  // namespace toroid
