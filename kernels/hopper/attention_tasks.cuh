// The list of tiles of a launch as tasks, one per tile and query head, handed out by a counter in
// device memory: a thread block that is done takes the next one.
#pragma once

#include <cstdint>

#include "kernels/attention_hopper.h"

namespace toroid::hopper {

struct Task {
  AttentionTile tile;
  int head;    // negative: no more
  int number;  // of the tile in the list
};

// Visible keys of row i of a tile: the first Limit(tile, i).
__host__ __device__ inline int Limit(const AttentionTile& tile, int i) {
  const int limit = i + tile.diagonal + 1;
  return limit < 0 ? 0 : limit < tile.k_count ? limit : tile.k_count;
}

// The same where rows have limits of their own, unless they are null. Row i may be beyond the last.
__device__ inline int Limit(const AttentionTile& tile, int i, const int32_t* limits) {
  if (limits == nullptr) return Limit(tile, i);
  return limits[tile.q_begin + min(i, tile.q_count - 1)];
}

struct TaskList {
  const AttentionTile* tiles;
  int tile_count, heads;
  int heads_at_a_time;  // all tiles of these heads, then of the next: what they read stays in L2
  int32_t* counters;    // tasks handed out, thread blocks that found no more

  // A thread block's first task is At(blockIdx.x), its others At(Next()); or all are At(Take()), so
  // that whoever waits for earlier tasks waits for thread blocks that have begun.
  __device__ Task At(int index) const {
    const int group_tasks = heads_at_a_time * tile_count;
    const int first_head = index / group_tasks * heads_at_a_time;
    const int group_heads = min(heads_at_a_time, heads - first_head);
    const int rest = index % group_tasks;
    if (group_heads <= 0 || rest >= group_heads * tile_count) return {{}, -1, 0};
    const int number = rest / group_heads;
    return {tiles[number], first_head + rest % group_heads, number};
  }
  __device__ int Take() const { return atomicAdd(&counters[0], 1); }
  __device__ int Next() const { return gridDim.x + atomicAdd(&counters[0], 1); }

  // The last thread block to find no more leaves the counters as it found them.
  __device__ void Finish() const {
    __threadfence();
    if (atomicAdd(&counters[1], 1) == static_cast<int>(gridDim.x) - 1) {
      counters[0] = 0;
      counters[1] = 0;
    }
  }
};

}  // namespace toroid::hopper
