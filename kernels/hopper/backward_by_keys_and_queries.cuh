// The consumers of attention_backward.cuh where they divide the keys, 64 each, and make dQ as well,
// a panel of columns each, at head dim 128.
//
//   S^T = K Q^T
//   for each block of queries:
//     issue dP^T = V dO^T
//     P^T = 2^(S^T - lse)              under dP^T
//     issue dV += P^T dO
//     dS^T = P^T (dP^T - delta)        under dV; also to shared memory: dQ sums over all keys
//     issue dQ = dS K, dK += dS^T Q, the next S^T
//     dQ to shared memory              under these
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/hopper/backward_producer.cuh"
#include "kernels/hopper/backward_products.cuh"

namespace toroid::hopper {

template <typename C, bool kOrdered>
__device__ void ConsumeByKeysAndQueries(const BackwardParams& params, BackwardShared<C>& shared,
                                        int warpgroup) {
  constexpr int kKeys = C::kKeys, kQueries = C::kQueries, kHeadDim = C::kHeadDim;
  static_assert(kHeadDim == C::kConsumers * kPanelColumns && kQueries == kMmaRows);
  constexpr int kAllConsumers = 1;
  const Place at(warpgroup);
  const __nv_bfloat16* my_k = shared.k + warpgroup * kMmaRows * kPanelColumns;
  const __nv_bfloat16* my_v = shared.v + warpgroup * kMmaRows * kPanelColumns;
  const __nv_bfloat16* k_panel = shared.k + warpgroup * kKeys * kPanelColumns;
  const int my_barrier = 2 + warpgroup;
  const bool speaks = threadIdx.x % kWarpgroupThreads == 0;  // to the copy engine
  Cursor<2> slot;
  Cursor<1> kv, dq_box;
  Cursor<2> exchange;
  Cursor<C::kStages> stage;
  KeySums<kHeadDim> dk, dv;
  float s[kQueries / 2], d_p[kQueries / 2];
  uint32_t p[kQueries / 4], d_s_rounded[kQueries / 4];
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    const AttentionTile& tile = task.tile;
    const int blocks = QueryBlocks<C>(tile);
    const FirstQueries firsts(tile, params.first_queries, at);
    dk.Clear();
    dv.Clear();
    shared.kv_full.Wait(kv.phase);
    kv.Advance();
    shared.q_full[stage.stage].Wait(stage.phase);
    IssueTransposed<kKeys, kQueries, kHeadDim>(s, my_k, shared.q[stage.stage]);
    WaitFor<0>();
    Pin(s);
    // S^T of `block` is there; so is that of the next one at the end, but for the last.
    const auto fold = [&](int block, auto last) {
      constexpr bool kLast = decltype(last)::value;
      const int now = stage.stage;
      shared.d_o_full[now].Wait(stage.phase);
      IssueTransposed<kKeys, kQueries, kHeadDim>(d_p, my_v, shared.d_o[now]);
      Probabilities<C>(s, shared.lse[now], params.scale_log2, at, firsts, block * kQueries);
      Round(s, p);
      IssueSum<kQueries, kHeadDim>(dv, p, shared.d_o[now]);
      WaitFor<1>();  // for dP^T
      Pin(d_p);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        ScoreGradients(d_p, p + 2 * j, shared.delta[now], j, at);
      }
      Round(d_p, d_s_rounded);
      // Two: who writes the next one has met the other after that finished the last but one.
      __nv_bfloat16* d_s = shared.d_s[exchange.stage];
      exchange.Advance();
      StoreRounded<kKeys>(d_s, d_s_rounded, warpgroup);
      PublishStores();
      Meet<C::kConsumers>(kAllConsumers);  // dS^T of all keys is there
      float dq[kPanelColumns / 2];
      IssueQueryGradients<kKeys>(dq, d_s, k_panel);
      IssueSum<kQueries, kHeadDim>(dk, d_s_rounded, shared.q[now]);
      WaitFor<2>();  // for dV
      Release(shared.d_o_empty[now]);
      stage.Advance();
      if constexpr (!kLast) {
        shared.q_full[stage.stage].Wait(stage.phase);
        IssueTransposed<kKeys, kQueries, kHeadDim>(s, my_k, shared.q[stage.stage]);
      }
      WaitFor<kLast ? 1 : 2>();  // for dQ
      Pin(dq);
      if constexpr (kOrdered) {
        shared.dq_empty[warpgroup].Wait(dq_box.phase ^ 1);
        StoreBox(shared.dq[warpgroup], dq, params.scale, at);
        PublishStores();
        Release(shared.dq_full[warpgroup]);
        dq_box.Advance();
      } else {
        if (speaks) WaitForReads<0>();
        Meet<1>(my_barrier);  // the box of the block before was read
        StoreBox(shared.dq[warpgroup], dq, params.scale, at);
        PublishStores();
        Meet<1>(my_barrier);  // the box is there
        if (speaks) AddBox<C>(params, shared.dq[warpgroup], task, block, warpgroup);
      }
      WaitFor<0>();  // for dK and S^T
      Pin(s);
      Release(shared.q_empty[now]);
    };
    for (int block = 0; block < blocks - 1; ++block) fold(block, std::false_type());
    fold(blocks - 1, std::true_type());
    dk.Hold();
    dv.Hold();
    Release(shared.kv_empty);
    const int kv_head = params.kv_index[task.head];
    AtRowTurn<C, kOrdered>(params, task, kv_head, warpgroup, [&] {
      const int64_t column = kv_head * kHeadDim;
      dk.Add(params.dk + tile.k_begin * params.dk_stride + column, params.dk_stride, params.scale,
             warpgroup * kMmaRows, tile.k_count, at);
      dv.Add(params.dv + tile.k_begin * params.dv_stride + column, params.dv_stride, 1.f,
             warpgroup * kMmaRows, tile.k_count, at);
    });
  }
  if (speaks) WaitForReads<0>();  // before shared memory goes away
}

}  // namespace toroid::hopper
