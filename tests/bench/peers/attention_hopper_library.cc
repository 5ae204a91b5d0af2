// kernels/attention_hopper*.h for Python's ctypes: attention_gpu.py loads it beside torch.
#include <algorithm>
#include <cstring>

#include "kernels/attention_hopper.h"
#include "kernels/attention_hopper_backward.h"

extern "C" {

// `batch` sequences of `tokens`, causal or not, packed one behind the other, cut for the forward or
// the backward. Writes at most `capacity` tiles of five int32 to `out`; returns their number.
int toroid_tiles(int batch, int tokens, int causal, int head_dim, int backward, int32_t* out,
                 int capacity) {
  std::vector<toroid::AttentionTile> tiles;
  for (int b = 0; b < batch; ++b) {
    tiles.push_back({b * tokens, tokens, b * tokens, tokens, causal ? 0 : toroid::kAllVisible});
  }
  tiles =
      backward ? toroid::CutTilesByKeys(tiles, head_dim) : toroid::CutTiles(tiles, head_dim, true);
  const int count = static_cast<int>(tiles.size());
  std::memcpy(out, tiles.data(), std::min(count, capacity) * sizeof(toroid::AttentionTile));
  return count;
}

// All dense: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]. 0 or a cudaError_t.
int toroid_attention(void* stream, const void* q, const void* k, const void* v, int64_t tokens,
                     int heads, int kv_heads, int head_dim, float scale, const int32_t* kv_index,
                     const void* tiles, int tile_count, float* o, float* lse, int fresh,
                     int32_t* counters) {
  toroid::AttentionHopperArgs args;
  args.q = q, args.k = k, args.v = v;
  args.q_tokens = args.k_tokens = tokens;
  args.heads = heads, args.kv_heads = kv_heads, args.head_dim = head_dim;
  args.q_stride = args.o_stride = int64_t{heads} * head_dim;
  args.k_stride = args.v_stride = int64_t{kv_heads} * head_dim;
  args.lse_stride = heads;
  args.kv_index = kv_index;
  args.scale = scale;
  args.tiles = static_cast<const toroid::AttentionTile*>(tiles);
  args.tile_count = tile_count;
  args.o = o, args.lse = lse, args.fresh = fresh != 0;
  args.counters = counters;
  return toroid::AttendTilesHopper(static_cast<cudaStream_t>(stream), args);
}

// The whole backward of one layer: gradients zeroed, delta, then the tiles; rows [heads, tokens,
// 2].
int toroid_attention_backward(void* stream, const void* q, const void* k, const void* v,
                              const void* d_o, int64_t tokens, int heads, int kv_heads,
                              int head_dim, float scale, const int32_t* kv_index, const void* tiles,
                              int tile_count, const float* o, const float* lse, float* rows,
                              float* dq, float* dk, float* dv, int32_t* counters) {
  const auto on = static_cast<cudaStream_t>(stream);
  toroid::AttentionHopperBackwardArgs args;
  args.q = q, args.k = k, args.v = v, args.d_o = d_o;
  args.q_tokens = args.k_tokens = tokens;
  args.heads = heads, args.kv_heads = kv_heads, args.head_dim = head_dim;
  args.q_stride = args.d_o_stride = args.dq_stride = int64_t{heads} * head_dim;
  args.k_stride = args.v_stride = args.dk_stride = args.dv_stride = int64_t{kv_heads} * head_dim;
  args.kv_index = kv_index;
  args.scale = scale;
  args.tiles = static_cast<const toroid::AttentionTile*>(tiles);
  args.tile_count = tile_count;
  args.rows = rows, args.dq = dq, args.dk = dk, args.dv = dv;
  args.counters = counters;
  cudaError_t error = cudaMemsetAsync(dq, 0, tokens * args.dq_stride * sizeof(float), on);
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(dk, 0, tokens * args.dk_stride * sizeof(float), on);
  }
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(dv, 0, tokens * args.dv_stride * sizeof(float), on);
  }
  if (error == cudaSuccess) {
    error = toroid::AttentionRowsHopper(on, o, args.q_stride, lse, heads, d_o, args.d_o_stride,
                                        tokens, heads, head_dim, rows);
  }
  return error != cudaSuccess ? error : toroid::AttendTilesBackwardHopper(on, args);
}

}  // extern "C"
