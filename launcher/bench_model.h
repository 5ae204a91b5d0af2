// What the workloads that run a whole model share: prompts, and the work that their bounds count.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/model_config.h"
#include "parallel/engine.h"

namespace toroid {

// Below `vocab`; the same on every rank.
std::vector<int32_t> RandomIds(int64_t count, int64_t vocab);

// Products of the layers, visible pairs of attention, logits of the last position.
double PrefillFlops(const ModelConfig& config, int64_t tokens);

// Read to make a token of each of `batch` sequences after `keys` others: weights as stored on this
// rank, K and V of `kv_bytes` a number. With ranks on the ring K and V are spread over them, which
// this leaves out.
double DecodeBytes(const Engine& engine, int64_t keys, int64_t batch, int64_t kv_bytes);

// Greedy tokens by decode against the same by a prefill of all before: cached = uncached.
// Collective.
absl::Status VerifyDecode(Engine& engine, int64_t made);

}  // namespace toroid
