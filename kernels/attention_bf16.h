// Attention over one tile, and its backward, as attention.h has them, with bf16 products on
// Hopper's tensor cores: Q and dO are rounded to bf16 in the workspace, unless they are bf16 where
// they lie, as K and V are; probabilities are rounded, sums, carry and gradients are float32. What
// each query sees is found from the positions on the device, so that any layout of a ring is one
// launch.
//
// Sums of the backward are added by many thread blocks: in a fixed order, and then the bits are the
// same each time, or as they come, which is faster.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda_stream.h"

namespace toroid {

struct AttentionWorkspace {
  void* data = nullptr;  // device, on 256 bytes, used by nothing else meanwhile
  int64_t bytes = 0;
  int32_t* counters = nullptr;  // device, two, zero before the first call and after each
};

enum class SumOrder { kFixed, kAny };

// Queries from which on the tensor cores are worth it.
inline constexpr int64_t kFewestBf16Queries = 64;

// False, and nothing is enqueued, where the kernel is not for these arguments: it takes head dim
// 64, 128 or 256, packed bf16 K and V, kFewestBf16Queries queries or more, no window and no length,
// rows on 16 bytes. `queries`, and `gradients` for dO, unless null: args.q (args.d_o) in bf16, with
// its stride, in its place. REQUIRES a device of compute capability 9.0.
bool AttendTileBf16(CudaStream s, const AttentionArgs<float>& args, const void* queries,
                    int64_t kv_heads, const AttentionWorkspace& workspace);
bool AttendTileBackwardBf16(CudaStream s, const AttentionBackwardArgs<float>& args,
                            const void* queries, const void* gradients, SumOrder order,
                            const AttentionWorkspace& workspace);

}  // namespace toroid
