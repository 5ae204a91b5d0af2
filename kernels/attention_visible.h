// Which keys a query of attention sees, where they lie, and a row of them widened. Included by
// kernel files alone.
#pragma once

#include "kernels/attention_block.h"

namespace toroid {
namespace {

struct KeyRange {
  int64_t begin, end;
};

// First key in [begin, end) whose position is > bound.
inline int64_t UpperBound(const int32_t* positions, int64_t begin, int64_t end, int64_t bound) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (positions[middle] > bound) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// The keys of `block` that its token `token` (counted in the block) sees.
template <typename T>
inline KeyRange VisibleKeys(const AttentionArgs<T>& args, const AttentionBlock<T>& block,
                            int64_t token) {
  const int64_t position = args.q_positions[block.token_begin + token];
  KeyRange seen = {block.key_begin, block.key_end};
  if (args.window > 0) {
    seen.begin =
        UpperBound(args.k_positions, block.key_begin, block.key_end, position - args.window);
  }
  if (args.causal) {
    seen.end = UpperBound(args.k_positions, block.key_begin, block.key_end, position);
  }
  return seen;
}

// How many of the block's query heads from `head` on (counted in the block) read its KV head.
template <typename T>
inline int64_t RunHeads(const AttentionArgs<T>& args, const AttentionBlock<T>& block,
                        int64_t head) {
  const int32_t* kv_index = args.kv_index + block.head_begin;
  int64_t end = head + 1;
  while (end < block.head_count && kv_index[end] == kv_index[head]) ++end;
  return end - head;
}

template <typename T>
inline int64_t PhysicalRow(const AttentionArgs<T>& args, int64_t key) {
  if (args.page_table == nullptr) return key;
  return int64_t{args.page_table[key / args.page_tokens]} * args.page_tokens +
         key % args.page_tokens;
}

// The rows of the kKeyBlock keys from `begin` on; the last one stands for those from `end` on.
template <typename T>
inline void FindRows(const AttentionArgs<T>& args, int64_t begin, int64_t end, int64_t* rows) {
  const int64_t count = end - begin < kKeyBlock ? end - begin : kKeyBlock;
  int64_t left = 0;  // keys of this page still to come
  for (int64_t j = 0; j < count; ++j, --left) {
    if (left == 0) {
      rows[j] = PhysicalRow(args, begin + j);
      left = args.page_table ? args.page_tokens - (begin + j) % args.page_tokens : count;
    } else {
      rows[j] = rows[j - 1] + 1;
    }
  }
  for (int64_t j = count; j < kKeyBlock; ++j) rows[j] = rows[count - 1];
}

// to[0, dims) = the `dim` elements of f32, f64 or bf16 from `offset` on, then zeros.
template <typename T>
inline void WidenRow(const void* from, DType type, int64_t offset, int64_t dim, int64_t dims,
                     T* to) {
  if (type == DType::kBF16) {
    const uint16_t* x = static_cast<const uint16_t*>(from) + offset;
    for (int64_t d = 0; d < dim; ++d) to[d] = __builtin_bit_cast(float, uint32_t(x[d]) << 16);
  } else if (type == DType::kF64) {
    const double* x = static_cast<const double*>(from) + offset;
    for (int64_t d = 0; d < dim; ++d) to[d] = T(x[d]);
  } else {
    const float* x = static_cast<const float*>(from) + offset;
    for (int64_t d = 0; d < dim; ++d) to[d] = x[d];
  }
  for (int64_t d = dim; d < dims; ++d) to[d] = 0;
}

}  // namespace
}  // namespace toroid
