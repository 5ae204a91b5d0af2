// The producer's warpgroup of attention_backward.cuh: one warp brings what the others multiply,
// another, where sums are added in order, adds the boxes of dQ.
#pragma once

#include <cstdint>

#include "kernels/hopper/backward_shared.cuh"
#include "kernels/hopper/online_softmax.cuh"
#include "kernels/hopper/turns_in_memory.cuh"

namespace toroid::hopper {

// Q, dO, lse and delta of one task, block after block of queries.
template <typename C>
__device__ void ProduceQueries(const BackwardParams& params, BackwardShared<C>& shared,
                               const Task& task, Cursor<C::kStages>& stage, uint64_t policy) {
  constexpr int kRowsOfLane = C::kQueries / kWarpThreads;
  const int lane = threadIdx.x % kWarpThreads;
  int token = task.tile.q_begin, left = task.tile.q_count - lane;
  const float2* rows = params.rows + task.head * params.q_tokens + token + lane;
  for (int block = QueryBlocks<C>(task.tile); block > 0; --block, stage.Advance()) {
    const int s = stage.stage;
    float2 row[kRowsOfLane];  // on their way while a stage is waited for
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      row[i] = make_float2(-MinusInfinity(), 0);  // beyond the tile's queries p is 0
      if (i * kWarpThreads < left) row[i] = rows[i * kWarpThreads];
    }
    shared.q_empty[s].Wait(stage.phase ^ 1);
    if (lane == 0) {
      shared.q_full[s].ArriveExpecting(C::kQBytes);
      LoadTile(shared.q[s], &params.q, token, task.head, &shared.q_full[s], policy);
    }
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) shared.lse[s][i * kWarpThreads + lane] = row[i].x;
    shared.q_full[s].Arrive();
    shared.d_o_empty[s].Wait(stage.phase ^ 1);
    if (lane == 0) {
      shared.d_o_full[s].ArriveExpecting(C::kQBytes);
      LoadTile(shared.d_o[s], &params.d_o, token, task.head, &shared.d_o_full[s], policy);
    }
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) shared.delta[s][i * kWarpThreads + lane] = row[i].y;
    shared.d_o_full[s].Arrive();
    rows += C::kQueries, token += C::kQueries, left -= C::kQueries;
  }
}

// One warp; its first lane speaks to the copy engine.
template <typename C, bool kOrdered>
__device__ void ProduceBackward(const BackwardParams& params, BackwardShared<C>& shared) {
  const int lane = threadIdx.x;
  const uint64_t keep = KeepInL2(), read_once = ReadOnceFromL2();
  Cursor<1> kv;
  Cursor<2> slot;
  Cursor<C::kStages> stage;
  const auto take = [&](int index) {
    if (lane == 0) index = kOrdered ? params.tasks.Take() : params.tasks.Next();
    return __shfl_sync(~0u, index, 0);
  };
  int index = kOrdered ? take(0) : blockIdx.x;
  for (;;) {
    const Task task = params.tasks.At(index);
    shared.task_empty[slot.stage].Wait(slot.phase ^ 1);
    if (lane == 0) {
      shared.tasks[slot.stage] = task;
      shared.task_full[slot.stage].Arrive();
    }
    slot.Advance();
    if (task.head < 0) break;
    index = take(index);
    if (task.tile.q_count <= 0) continue;
    shared.kv_empty.Wait(kv.phase ^ 1);
    kv.Advance();
    if (lane == 0) {
      const int kv_head = params.kv_index[task.head];
      shared.kv_full.ArriveExpecting(2 * C::kKvBytes);
      LoadTile(shared.k, &params.k, task.tile.k_begin, kv_head, &shared.kv_full, read_once);
      LoadTile(shared.v, &params.v, task.tile.k_begin, kv_head, &shared.kv_full, read_once);
    }
    ProduceQueries<C>(params, shared, task, stage, keep);
  }
  if (lane == 0) params.tasks.Finish();
}

// Which 64 x 64 of a block's dQ box `index` is: columns first, then rows.
template <typename C>
__device__ void AddBox(const BackwardParams& params, const float* box, const Task& task, int block,
                       int index) {
  constexpr int kAcross = C::kHeadDim / kPanelColumns;
  AddTile(&params.dq, box, task.tile.q_begin + block * C::kQueries + index / kAcross * kMmaRows,
          index % kAcross * 2, task.head);
}

// One warp: the boxes of each block of queries at its turn.
template <typename C>
__device__ void AddInOrder(const BackwardParams& params, BackwardShared<C>& shared) {
  constexpr int kOfBlock = C::kQueries * C::kHeadDim / (kMmaRows * kPanelColumns);
  const bool speaks = threadIdx.x % kWarpThreads == 0;  // to the copy engine
  Cursor<2> slot;
  Cursor<C::kBoxes> box;
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    int32_t* turn = params.turns + task.head * QueryTurns<C>(params.q_tokens, 1) +
                    task.tile.q_begin / C::kQueries;
    for (int block = 0; block < QueryBlocks<C>(task.tile); ++block, ++turn) {
      if (speaks) AwaitTurn(turn, task.number);
      for (int i = 0; i < kOfBlock; ++i, box.Advance()) {
        shared.dq_full[box.stage].Wait(box.phase);
        if (speaks) {
          AddBox<C>(params, shared.dq[box.stage], task, block, i);
          WaitForReads<0>();
          shared.dq_empty[box.stage].Arrive();
        }
        __syncwarp();  // no lane a phase behind
      }
      if (speaks) {
        WaitForAdds();
        PassTurn(turn);
      }
    }
  }
}

}  // namespace toroid::hopper
