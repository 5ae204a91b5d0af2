// Inside of attention's backward: the unit of work that one worker does with one vector kernel.
#pragma once

#include <cstdint>

#include "kernels/attention.h"

namespace toroid {

// All query heads of one KV head, tokens [token_begin, +token_count) by keys [key_begin, key_end).
struct AttentionBackwardBlock {
  int64_t kv_head, token_begin, token_count, key_begin, key_end;
};

// One per instruction set.
template <typename T>
using AttentionBackwardKernel = void (*)(const AttentionBackwardArgs<T>& args,
                                         const AttentionBackwardBlock& block, void* scratch);

AttentionBackwardKernel<float> AttentionBackwardAvx2();
AttentionBackwardKernel<float> AttentionBackwardAvx512();

}  // namespace toroid
