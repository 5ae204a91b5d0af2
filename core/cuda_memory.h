// What a rank takes of its GPU, known before there is one: for `plan`, on any machine.
#pragma once

#include <cstdint>
#include <memory>

#include "core/backend.h"

namespace toroid {

// Rows of a feed-forward block on a GPU (Backend::token_block).
inline constexpr int64_t kCudaTokenBlock = 8192;
// Of a compute stream's workspace what ops other than products may use, and the counters behind it.
inline constexpr int64_t kCudaFreeWorkspaceBytes = int64_t{64} << 20;
inline constexpr int64_t kCudaHopperCounters = 64;
int64_t CudaWorkspaceBytes();

// Bytes of a GPU that a rank with one compute stream takes besides what Backend::Allocate gives:
// that stream's workspace, and what the driver holds for the process (its context, the code of the
// kernels that have run, cuBLASLt's among them, graphs). The latter was measured on one kind of
// device: tests/bench/results/2026-11-23-plan-h100.md.
int64_t CudaRankBytes();

// NewCountingBackend of a GPU that multiplies matrices in `product` and need not be there.
std::unique_ptr<Backend> NewCountingCudaBackend(DType product);

}  // namespace toroid
