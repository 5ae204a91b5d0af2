// Backward of attention_hopper.h, for any part of the keys, given the whole row's lse and o:
//
//   delta_i = do_i . o_i;  p_ij = e^(scale q_i . k_j - lse_i);  ds_ij = p_ij (do_i . v_j - delta_i)
//   dv_j += sum_i p_ij do_i;  dk_j += scale sum_i ds_ij q_i;  dq_i += scale sum_j ds_ij k_j
//
// (Dao 2023, with lse merged over all rounds, so that each round's part is exact.) The gradients
// are float32 sums: a launch adds its tiles to what is there, so that rounds of a ring, chunks and
// query heads that share a KV head need no pass of their own. The order of additions, and with it
// the last bits, varies from run to run, unless a launch is given turns. The caller zeroes the sums
// once.
//
// Head dim 64, 128 or 256; device of compute capability 9.0.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/attention_hopper.h"

namespace toroid {

// Keys that one thread block takes; 0 if the kernel does not take this head dim.
int AttentionHopperBackwardKeys(int head_dim);
// Queries that it takes at a time.
int AttentionHopperBackwardQueries(int head_dim);
// Turns that a launch in order needs.
int64_t AttentionHopperBackwardTurns(int head_dim, int64_t q_tokens, int heads, int tile_count,
                                     int kv_heads);

// The tiles cut along their keys for the backward, the longest first; what sees nothing is left
// out.
std::vector<AttentionTile> CutTilesByKeys(const std::vector<AttentionTile>& tiles, int head_dim);

// Per query and head, what the backward needs of the forward: rows [heads, tokens, 2] float32 with
// lse in base 2 (infinity where no key was seen) and delta.
cudaError_t AttentionRowsHopper(cudaStream_t stream, const float* o, int64_t o_stride,
                                const float* lse, int64_t lse_stride, const void* d_o,
                                int64_t d_o_stride, int64_t tokens, int heads, int head_dim,
                                float* rows);

struct AttentionHopperBackwardArgs {
  const void* q = nullptr;    // bf16 [q_tokens, heads, head_dim]
  const void* d_o = nullptr;  // as q
  const void* k = nullptr;    // bf16 [k_tokens, kv_heads, head_dim]
  const void* v = nullptr;
  int64_t q_tokens = 0, k_tokens = 0;
  int64_t q_stride = 0, d_o_stride = 0, k_stride = 0, v_stride = 0;  // multiples of 8 elements
  const int32_t* kv_index = nullptr;                                 // device, [heads]
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;  // > 0
  const AttentionTile* tiles =
      nullptr;  // device, from CutTilesByKeys; a (query, key) in one at most
  int tile_count = 0;
  // Device, [k_tokens], may be null: key j is seen by the queries of its tile from first_queries[j]
  // on, counted as tokens of q, never an earlier one than the key before it; diagonals are then not
  // looked at. A tile may then have no queries.
  const int32_t* first_queries = nullptr;
  const float* rows = nullptr;  // of AttentionRowsHopper
  float* dq = nullptr;          // [q_tokens, heads, head_dim], added to
  float* dk = nullptr;          // [k_tokens, kv_heads, head_dim], added to
  float* dv = nullptr;
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;  // elements; of dq a multiple of 4
  int32_t* counters = nullptr;                          // device, as in the forward
  // Device, AttentionHopperBackwardTurns of them, for this launch alone; null: in any order. Sums
  // are then added in the order of tiles and heads: the same bits each time. REQUIRES
  // first_queries, and tiles that begin at multiples of AttentionHopperBackwardQueries, no earlier
  // than the tile before, and end at the same query.
  int32_t* turns = nullptr;
};

// Enqueues one kernel. Errors: cudaErrorInvalidValue for arguments against the comments above; the
// order of tiles, which lie on the device, is not seen: with turns another order waits for ever.
cudaError_t AttendTilesBackwardHopper(cudaStream_t stream, const AttentionHopperBackwardArgs& args);

}  // namespace toroid
