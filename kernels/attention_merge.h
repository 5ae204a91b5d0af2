// Merges n partial attentions of the same queries over different keys:
//   lse = logsumexp_i lse_i,   o = sum_i e^(lse_i - lse) o_i
// in order of i, so all who merge the same parts hold the same bits. A part with lse_i = -inf does
// not count; rows whose parts are all -inf get o = 0 and lse = -inf. FlashDecoding's reduction
// (Dao et al. 2023).
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/thread_pool.h"

namespace toroid {

// Part i of row r: o_parts[i o_part_stride + r dim ..], lse_parts[i lse_part_stride + r]. Row r of
// the result: o[r / heads * o_stride + r % heads * dim ..]. lse (by row, may be null) is written
// too; with `carry` o and lse hold one more part, which comes first.
template <typename T>
struct MergeArgs {
  const T* o_parts = nullptr;
  const T* lse_parts = nullptr;
  int64_t parts = 0, rows = 0, heads = 1, dim = 0;
  int64_t o_part_stride = 0, lse_part_stride = 0;
  T* o = nullptr;
  int64_t o_stride = 0;
  T* lse = nullptr;
  int64_t lse_stride = 0;
  bool carry = false;
};

void AttentionMerge(ThreadPool& pool, const MergeArgs<float>& args);
void AttentionMerge(ThreadPool& pool, const MergeArgs<double>& args);

void AttentionMerge(CudaStream s, const MergeArgs<float>& args);

}  // namespace toroid
