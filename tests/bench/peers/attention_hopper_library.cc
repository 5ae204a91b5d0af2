// kernels/attention_hopper.h for Python's ctypes: attention_gpu.py loads it beside torch.
#include <algorithm>
#include <cstring>

#include "kernels/attention_hopper.h"

extern "C" {

// `batch` sequences of q tokens, causal or not, packed one behind the other. Writes at most
// `capacity` tiles of five int32 to `out`; returns their number.
int toroid_tiles(int batch, int tokens, int causal, int head_dim, int32_t* out, int capacity) {
  std::vector<toroid::AttentionTile> tiles;
  for (int b = 0; b < batch; ++b) {
    tiles.push_back({b * tokens, tokens, b * tokens, tokens, causal ? 0 : toroid::kAllVisible});
  }
  tiles = toroid::CutTiles(tiles, head_dim, true);
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

}  // extern "C"
