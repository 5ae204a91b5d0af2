// The consumers of attention_backward.cuh where they divide the keys: 64 each, whose dK and dV are
// beside scores and their gradients in registers.
//
//   S^T = K Q^T
//   for each block of queries:
//     issue dK += dS^T Q of the block before, dP^T = V dO^T
//     P^T = 2^(S^T - lse)                         under these
//     issue S^T of the next block, dV += P^T dO
//     dS^T = P^T (dP^T - delta)                   under these; to shared memory: dQ sums over all
//                                                 keys
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/hopper/backward_products.cuh"

namespace toroid::hopper {

template <typename C, bool kOrdered>
__device__ void ConsumeByKeys(const BackwardParams& params, BackwardShared<C>& shared,
                              int warpgroup) {
  constexpr int kKeys = C::kKeys, kQueries = C::kQueries, kHeadDim = C::kHeadDim;
  const Place at(warpgroup);
  const __nv_bfloat16* my_k = shared.k + warpgroup * kMmaRows * kPanelColumns;
  const __nv_bfloat16* my_v = shared.v + warpgroup * kMmaRows * kPanelColumns;
  Cursor<2> slot;
  Cursor<1> kv;
  Cursor<2> exchange;
  Cursor<C::kStages> q, next_q, d_o;  // of dK, of S^T, of dP^T and dV
  KeySums<kHeadDim> dk, dv;
  float s[kQueries / 2], d_p[kQueries / 2];
  uint32_t p[kQueries / 4], d_s[kQueries / 4];
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    const AttentionTile& tile = task.tile;
    const int blocks = QueryBlocks<C>(tile);
    const FirstQueries firsts(tile, params.first_queries, at);
    dk.Clear();
    dv.Clear();
#pragma unroll
    for (int i = 0; i < kQueries / 4; ++i) d_s[i] = 0;  // of the block before the first
    const auto issue_s = [&] {
      shared.q_full[next_q.stage].Wait(next_q.phase);
      IssueTransposed<kKeys, kQueries, kHeadDim>(s, my_k, shared.q[next_q.stage]);
    };
    const auto issue_d_p = [&] {
      shared.d_o_full[d_o.stage].Wait(d_o.phase);
      IssueTransposed<kKeys, kQueries, kHeadDim>(d_p, my_v, shared.d_o[d_o.stage]);
    };
    const auto issue_dv = [&] { IssueSum<kQueries, kHeadDim>(dv, p, shared.d_o[d_o.stage]); };
    const auto issue_dk = [&] { IssueSum<kQueries, kHeadDim>(dk, d_s, shared.q[q.stage]); };
    const auto probabilities = [&](int block) {
      Pin(s);
      Probabilities<C>(s, shared.lse[next_q.stage], params.scale_log2, at, firsts,
                       block * kQueries);
      next_q.Advance();
      Round(s, p);
    };
    const auto gradients = [&] {
      Pin(d_p);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        ScoreGradients(d_p, p + 2 * j, shared.delta[d_o.stage], j, at);
      }
    };
    const auto pass_on = [&] {
      Round(d_p, d_s);
      shared.d_s_empty[exchange.stage].Wait(exchange.phase ^ 1);
      StoreRounded<kKeys>(shared.d_s[exchange.stage], d_s, warpgroup);
      PublishStores();
      Release(shared.d_s_full[exchange.stage]);
      exchange.Advance();
    };
    const auto end_dv = [&] {
      dv.Hold();
      Release(shared.d_o_empty[d_o.stage]);
      d_o.Advance();
    };
    const auto release_q = [&] {
      Release(shared.q_empty[q.stage]);
      q.Advance();
    };

    shared.kv_full.Wait(kv.phase);
    kv.Advance();
    issue_s();
    WaitFor<0>();
    const auto fold = [&](int block, auto last) {
      constexpr bool kLast = decltype(last)::value;
      issue_dk();  // of the block before
      issue_d_p();
      probabilities(block);
      if constexpr (!kLast) issue_s();
      issue_dv();
      WaitFor<kLast ? 1 : 2>();  // for dK and dP^T
      dk.Hold();
      if (block > 0) release_q();
      gradients();
      pass_on();
      WaitFor<0>();  // for S^T and dV
      end_dv();
    };
    for (int block = 0; block < blocks - 1; ++block) fold(block, std::false_type());
    fold(blocks - 1, std::true_type());
    issue_dk();
    WaitFor<0>();
    dk.Hold();
    release_q();
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
}

}  // namespace toroid::hopper
