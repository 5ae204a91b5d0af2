// Inside of attention: the unit of work that one worker does with one vector kernel.
#pragma once

#include <cstdint>

#include "kernels/attention.h"

namespace toroid {

inline constexpr int64_t kKeyBlock = 64;
// Few rows: up to so many to a KV head, and up to so many KV heads in one block.
inline constexpr int64_t kNarrowRows = 8, kNarrowRuns = 16;

// The query heads [head_begin, +head_count) of tokens [token_begin, +token_count) against keys
// [key_begin, key_end). They are one or several runs of heads that read one KV head; several only
// if each has at most kNarrowRows (token, head) pairs, and at most kNarrowRuns of them. The rows of
// a run are its (token, head) pairs, token by token.
template <typename T>
struct AttentionBlock {
  int64_t head_begin, head_count, token_begin, token_count;
  int64_t key_begin, key_end;
  // Where the carry lies: element (token, head, 0) of o at (token - token_begin) * o_stride +
  // (head - head_begin) * head_dim, and so for lse. `fresh`: do not read it, it is (0, -inf).
  T* o;
  int64_t o_stride;
  T* lse;
  int64_t lse_stride;
  bool fresh;
};

// One per instruction set. rows: how many rows fill a block at this head dimension.
template <typename T>
struct AttentionKernel {
  void (*attend)(const AttentionArgs<T>& args, const AttentionBlock<T>& block, void* scratch);
  int64_t (*rows)(int64_t head_dim);
  int64_t lanes;
};

const AttentionKernel<float>& AttentionAvx2();
const AttentionKernel<float>& AttentionAvx512();

}  // namespace toroid
