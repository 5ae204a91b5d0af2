// How the kernel of attention_backward.cuh is cut, and what its warpgroups share.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/hopper/attention_tasks.cuh"
#include "kernels/hopper/mbarrier.cuh"
#include "kernels/hopper/tma.cuh"
#include "kernels/hopper/warpgroup.cuh"
#include "kernels/hopper/wgmma.cuh"

namespace toroid::hopper {

// What the two consumers divide among themselves.
enum class Divided {
  kKeys,            // 64 each
  kKeysAndQueries,  // and the rows or columns of dQ, since registers for a summer are not left
  kGradients,       // of 64 keys, whose dK and dV fill the registers of both
};

// kStages of Q and dO; registers of a consumer; boxes of dQ, 64 x 64.
template <int kHeadDimensions, Divided kDivision, int kRingStages, int kRegisters, int kDqBoxes>
struct BackwardCut {
  static constexpr int kHeadDim = kHeadDimensions, kQueries = 64, kStages = kRingStages;
  static constexpr Divided kDivided = kDivision;
  static constexpr bool kSummer = kDivided != Divided::kKeysAndQueries;
  static constexpr int kConsumers = 2, kBoxes = kDqBoxes;
  static constexpr int kKeys = (kDivided == Divided::kGradients ? 1 : kConsumers) * kMmaRows;
  static constexpr int kWarpgroups = 1 + kSummer + kConsumers;
  static constexpr int kThreads = kWarpgroups * kWarpgroupThreads;
  static constexpr int kQBytes = kQueries * kHeadDim * 2, kKvBytes = kKeys * kHeadDim * 2;

  // What a thread block is launched with: more would be waited for for ever.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8 * kWarpgroups;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = kRegisters;
  static constexpr int kSummerRegisters =
      kLaunchRegisters - kProducerRegisters - kConsumers * kConsumerRegisters;
  static_assert(kSummerRegisters >= (kSummer ? 72 : 0));
  static_assert(kSummer || kBoxes == kConsumers, "one for each");
};

template <typename C>
struct BackwardShared {
  alignas(kSwizzleAtomBytes) __nv_bfloat16 k[C::kKeys * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 v[C::kKeys * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 q[C::kStages][C::kQueries * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 d_o[C::kStages][C::kQueries * C::kHeadDim];
  // dS^T in panels of 64 queries, a ring of two; where gradients are divided P^T is there before.
  alignas(kSwizzleAtomBytes) __nv_bfloat16 d_s[2][C::kKeys * C::kQueries];
  alignas(kSwizzleAtomBytes) float dq[C::kBoxes][kMmaRows * kPanelColumns];
  alignas(16) float lse[C::kStages][C::kQueries];
  alignas(16) float delta[C::kStages][C::kQueries];
  Barrier kv_full, kv_empty;
  Barrier q_full[C::kStages], q_empty[C::kStages], d_o_full[C::kStages], d_o_empty[C::kStages];
  Barrier p_full[2], d_s_full[2], d_s_empty[2];
  Barrier task_full[2], task_empty[2];
  Barrier dq_full[C::kBoxes], dq_empty[C::kBoxes];  // in order alone
  Task tasks[2];

  // By one thread. q and dO are full by the copy's bytes, and by lse and delta of 32 lanes.
  __device__ void Init(bool ordered) {
    constexpr int kConsumerWarps = C::kConsumers * kWarpgroupWarps;
    constexpr int kAllWarps = kConsumerWarps + (C::kSummer ? kWarpgroupWarps : 0);
    constexpr bool kByKeys = C::kDivided == Divided::kKeys;
    kv_full.Init(1);
    kv_empty.Init(kAllWarps);
    for (int i = 0; i < C::kStages; ++i) {
      q_full[i].Init(1 + kWarpThreads);
      d_o_full[i].Init(1 + kWarpThreads);
      q_empty[i].Init(kConsumerWarps);
      d_o_empty[i].Init(kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) {
      p_full[i].Init(kWarpgroupWarps);
      d_s_full[i].Init(kByKeys ? kConsumerWarps : kWarpgroupWarps);
      d_s_empty[i].Init(kWarpgroupWarps);
      task_full[i].Init(1);
      task_empty[i].Init(kAllWarps + (ordered ? 1 : 0));
    }
    for (int i = 0; i < C::kBoxes; ++i) {
      dq_full[i].Init(kWarpgroupWarps);
      dq_empty[i].Init(1);
    }
    FenceBarrierInit();
  }
};

struct BackwardParams {
  CUtensorMap q, d_o, k, v, dq;
  TaskList tasks;
  const int32_t* kv_index;
  const int32_t* first_queries;  // null: tiles have diagonals
  const float2* rows;            // [heads, q_tokens]: lse in base 2, delta
  float *dk, *dv;
  int64_t q_tokens, dk_stride, dv_stride;
  float scale, scale_log2;
  int32_t* turns;  // of QueryTurns, then of RowTurns; null: unordered
  int kv_heads;
};

// Turns of the rows of dQ, a block of queries of a head.
template <typename C>
__host__ __device__ int64_t QueryTurns(int64_t q_tokens, int heads) {
  return (q_tokens + C::kQueries - 1) / C::kQueries * heads;
}
// Turns of the rows of dK and dV: one for each consumer's part of a tile's, of a KV head.
template <typename C>
__host__ __device__ int64_t RowTurns(int tile_count, int kv_heads) {
  return int64_t{tile_count} * kv_heads * C::kConsumers;
}

template <typename C>
__device__ int QueryBlocks(const AttentionTile& tile) {
  return (tile.q_count + C::kQueries - 1) / C::kQueries;
}

// The task that the producer tells a warpgroup, or the adding warp, of next; false: no more. Whole
// warps.
template <typename C>
__device__ bool NextTask(BackwardShared<C>& shared, Cursor<2>& slot, Task& task) {
  shared.task_full[slot.stage].Wait(slot.phase);
  task = shared.tasks[slot.stage];
  Release(shared.task_empty[slot.stage]);
  slot.Advance();
  return task.head >= 0;
}

}  // namespace toroid::hopper
