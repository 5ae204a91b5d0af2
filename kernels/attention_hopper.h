// Attention on Hopper's tensor cores: softmax(scale q k^T + mask) v in bf16 with float32 sums,
// continuing a float32 carry (o, lse) as kernels/attention.h does, so that rounds of a ring, chunks
// of a prompt and pages of a cache need no merge pass. Formulas: attention.h; schedule:
// FlashAttention-3 (Shah et al. 2024), FlashAttention-2 for the loop over keys.
//
// What a launch does is data: a list of AttentionTile in device memory, made once per layout by
// CutTiles and used by every layer and step. Keys that no row of a tile sees cost nothing.
//
// Head dim 64, 128 or 256; device of compute capability 9.0.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace toroid {

// Queries q_begin .. q_begin + q_count - 1 see keys of k_begin .. k_begin + k_count - 1: query
// q_begin + i sees key k_begin + j iff j <= i + diagonal. On a diagonal tile `diagonal` is the
// difference of the first positions; a full tile has kAllVisible.
struct AttentionTile {
  int32_t q_begin = 0, q_count = 0;
  int32_t k_begin = 0, k_count = 0;
  int32_t diagonal = 0;
};
inline constexpr int32_t kAllVisible = 1 << 30;

// Rows of queries that one thread block takes; 0 if the kernel does not take this head dim.
int AttentionHopperRows(int head_dim);

// The tiles cut to at most AttentionHopperRows rows, the longest first, so that the last to start
// are short. Without `fresh` those whose rows see nothing are left out: their carry stays.
std::vector<AttentionTile> CutTiles(const std::vector<AttentionTile>& tiles, int head_dim,
                                    bool fresh);

struct AttentionHopperArgs {
  const void* q = nullptr;  // bf16 [q_tokens, heads, head_dim]
  const void* k = nullptr;  // bf16 [k_tokens, kv_heads, head_dim]; no NaN in any row, seen or not
  const void* v = nullptr;
  int64_t q_tokens = 0, k_tokens = 0;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;  // elements between tokens, multiples of 8
  const int32_t* kv_index = nullptr;                 // device, [heads]
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;                       // > 0
  const AttentionTile* tiles = nullptr;  // device, from CutTiles; no query is in two of them
  int tile_count = 0;
  // Device, [q_tokens], may be null: query i sees the first limits[i] keys of its tile, from 0 to
  // k_count, never fewer than the query before it in the tile; diagonals are then not looked at.
  const int32_t* limits = nullptr;
  float* o = nullptr;  // [q_tokens, heads, head_dim]
  int64_t o_stride = 0;
  float* lse = nullptr;  // [q_tokens, heads]
  int64_t lse_stride = 0;
  bool fresh = true;  // the carry is o = 0, lse = -inf and is not read; else a row that sees no key
                      // keeps its bits
  int32_t* counters = nullptr;  // device, two; zero before the first launch, left zero by each;
                                // launches that may overlap need their own
};

// Enqueues one kernel. Errors: cudaErrorInvalidValue for arguments against the comments above.
cudaError_t AttendTilesHopper(cudaStream_t stream, const AttentionHopperArgs& args);

}  // namespace toroid
