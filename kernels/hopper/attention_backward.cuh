// The kernel of kernels/attention_hopper_backward.h. A task is a block of keys of one query head;
// block after block of queries, warpgroups that know of each other by what is full and empty in
// shared memory:
//
//   producer       one warp: K and V once, then Q, dO, lse and delta, through rings of kStages
//                  stages (backward_producer.cuh)
//   consumers, 2   S^T, P^T, dP^T, dS^T, dV += P^T dO, dK += dS^T Q, which stay in registers;
//                  dS^T to shared memory (backward_by_*.cuh: what they divide)
//   summer         dQ = dS K, which sums over all keys of the task, to shared memory in boxes that
//                  the copy engine adds in device memory (here)
//
// So the consumers neither wait for dQ nor for each other. At head dim 128 there are no registers
// for a summer: they make dQ and meet at every block. dK and dV are added in device memory at the
// end of a task.
//
// Many thread blocks add to a box of dQ, one for each block of keys, and to dK and dV, one for
// each query head of a KV head. kOrdered: they take turns, blocks of keys and heads ascending,
// which is the order in which tasks are taken, so that nobody waits for a task that has not begun.
// A second warp beside the producer waits for the turns of dQ, adds and passes the turns on.
//
// Atomics of the consumers in the copy engine's place cost a fifth of the speed.
#pragma once

#include <cstdint>

#include "kernels/hopper/backward_by_gradients.cuh"
#include "kernels/hopper/backward_by_keys.cuh"
#include "kernels/hopper/backward_by_keys_and_queries.cuh"
#include "kernels/hopper/backward_producer.cuh"
#include "kernels/hopper/backward_products.cuh"
#include "kernels/hopper/backward_shared.cuh"

namespace toroid::hopper {

template <typename C, bool kOrdered>
__device__ void SumQueries(const BackwardParams& params, BackwardShared<C>& shared) {
  constexpr int kKeys = C::kKeys, kPieces = C::kHeadDim / kPanelColumns;
  static_assert(C::kQueries == kMmaRows);
  constexpr int kMine = 1;  // the barrier of this warpgroup
  const Place at(0);
  const bool speaks = threadIdx.x % kWarpgroupThreads == 0;  // to the copy engine
  Cursor<2> slot;
  Cursor<1> kv;
  Cursor<2> exchange;
  Cursor<C::kBoxes> box;
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    shared.kv_full.Wait(kv.phase);
    kv.Advance();
    const int blocks = QueryBlocks<C>(task.tile);
    for (int block = 0; block < blocks; ++block, exchange.Advance()) {
      shared.d_s_full[exchange.stage].Wait(exchange.phase);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece, box.Advance()) {
        float dq[kPanelColumns / 2];
        IssueQueryGradients<kKeys>(dq, shared.d_s[exchange.stage],
                                   shared.k + piece * kKeys * kPanelColumns);
        WaitFor<0>();
        Pin(dq);
        if (piece + 1 == kPieces) Release(shared.d_s_empty[exchange.stage]);
        if constexpr (kOrdered) {
          shared.dq_empty[box.stage].Wait(box.phase ^ 1);
          StoreBox(shared.dq[box.stage], dq, params.scale, at);
          PublishStores();
          Release(shared.dq_full[box.stage]);
        } else {
          if (speaks) WaitForReads<C::kBoxes - 1>();
          Meet<1>(kMine);  // this box was read
          StoreBox(shared.dq[box.stage], dq, params.scale, at);
          PublishStores();
          Meet<1>(kMine);  // it is there
          if (speaks) AddBox<C>(params, shared.dq[box.stage], task, block, piece);
        }
      }
    }
    Release(shared.kv_empty);
  }
  if (speaks) WaitForReads<0>();  // before shared memory goes away
}

template <typename C, bool kOrdered>
__global__ void __launch_bounds__(C::kThreads, 1)
    AttentionBackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = SharedAddress(raw) % kSwizzleAtomBytes;
  auto& shared = *reinterpret_cast<BackwardShared<C>*>(
      raw + (misaligned ? kSwizzleAtomBytes - misaligned : 0));
  if (threadIdx.x == 0) {
    shared.Init(kOrdered);
    PrefetchTensorMap(&params.q);
    PrefetchTensorMap(&params.d_o);
    PrefetchTensorMap(&params.k);
    PrefetchTensorMap(&params.v);
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  if (warpgroup == 0) {
    GiveBackRegisters<C::kProducerRegisters>();
    const int warp = __shfl_sync(~0u, threadIdx.x / kWarpThreads, 0);
    if (warp == 0) ProduceBackward<C, kOrdered>(params, shared);
    if (kOrdered && warp == 1) AddInOrder<C>(params, shared);
  } else if (C::kSummer && warpgroup == 1) {
    if constexpr (C::kSummer) {
      GiveBackRegisters<C::kSummerRegisters>();
      SumQueries<C, kOrdered>(params, shared);
    }
  } else {
    TakeRegisters<C::kConsumerRegisters>();
    const int consumer = warpgroup - 1 - C::kSummer;
    if constexpr (C::kDivided == Divided::kKeysAndQueries) {
      ConsumeByKeysAndQueries<C, kOrdered>(params, shared, consumer);
    } else if constexpr (C::kDivided == Divided::kKeys) {
      ConsumeByKeys<C, kOrdered>(params, shared, consumer);
    } else if (consumer == 0) {
      ConsumeValues<C, kOrdered>(params, shared);
    } else {
      ConsumeKeys<C, kOrdered>(params, shared);
    }
  }
}

}  // namespace toroid::hopper
