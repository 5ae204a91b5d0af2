// The operands of Backend::AttendTile as the kernels of every device take them. Still missing: o,
// and the length, which a host reads at once and a device when its kernel runs.
#pragma once

#include <algorithm>

#include "core/model/attention_spec.h"
#include "core/tensor.h"
#include "kernels/attention.h"

namespace toroid {

template <typename T>
AttentionArgs<T> TileArguments(const Tensor& q_thK, const Tensor& q_positions, const KvView& kv,
                               const Tensor& kv_index, const AttentionSpec& spec, const Tile& tile,
                               const Tensor& lse_th) {
  AttentionArgs<T> args;
  args.q = q_thK.as<const T>(), args.q_stride = q_thK.stride;
  args.q_positions = q_positions.as<const int32_t>();
  args.k = kv.k.data, args.v = kv.v.data, args.kv_type = kv.k.dtype;
  args.k_stride = kv.k.stride, args.v_stride = kv.v.stride;
  args.k_positions = kv.positions.as<const int32_t>();
  args.page_table = kv.page_table.as<const int32_t>();
  args.page_tokens = std::max<int64_t>(kv.page_tokens, 1);
  args.kv_index = kv_index.as<const int32_t>();
  args.heads = q_thK.dims[1], args.head_dim = q_thK.dims[2];
  args.q_begin = tile.q_begin, args.q_count = tile.q_count;
  args.k_begin = tile.k_begin, args.k_count = tile.k_count;
  args.causal = spec.causal, args.window = spec.window, args.scale = spec.scale;
  args.lse = lse_th.as<T>(), args.lse_stride = lse_th.stride;
  return args;
}

}  // namespace toroid
