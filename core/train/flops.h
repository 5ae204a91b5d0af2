// Floating-point operations of a step of training, for MFU and HFU. A multiply-add counts as two.
//
// Convention. Per token of a document of T tokens, with N the parameters that products multiply by:
// all matrices, the output head among them, but no table that is only looked up (learned positions,
// an embedding that is not the head):
//
//   model      6 N + sum over layers of 12 H K min(T, window)
//   hardware   model + what is computed again
//
// A backward costs twice its forward. Attention counts whole squares, as PaLM (Chowdhery et al.
// 2204.02311, appendix B) and most reports do: a causal mask, which lets kernels leave out half of
// it, is not taken into account. Documents packed together are each their own T.
//
// Computed again per layer and token (core/model/block.h says what each mode keeps), attention in
// whole squares too:
//   scores, by every backward of attention            2 H K min(T, window)
//   kAttentionOutput, kBlock: Wq Wk Wv W1 W3           2 x their parameters
//   kBlock: attention, and Wo in serial blocks         4 H K min(T, window) + 2 x Wo's
//
//   MFU = model / (seconds x ranks x peak of one),  HFU = hardware / (the same)
// Norms, activations, softmax and the optimizer are left out. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/block.h"
#include "core/model/model_config.h"

namespace toroid {

struct TrainingFlops {
  double model = 0, hardware = 0;
};

// Of a batch on all ranks together; `documents`: lengths, of each pack. `layers`: the first so many
// are trained. REQUIRES 0 < layers <= config.layers.
TrainingFlops FlopsOf(const ModelConfig& config, int64_t layers, Remat remat,
                      const std::vector<std::vector<int64_t>>& documents);

}  // namespace toroid
