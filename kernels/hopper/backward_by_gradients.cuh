// The consumers of attention_backward.cuh where they divide the gradients: 64 keys, whose dK and dV
// are 128 registers a thread each at head dim 256. P^T passes from one to the other through shared
// memory, where dS^T takes its place.
//
//   values:  S^T = K Q^T;  P^T = 2^(S^T - lse), to shared memory;  dV += P^T dO
//   keys:    dP^T = V dO^T;  dS^T = P^T (dP^T - delta), to shared memory;  dK += dS^T Q
//
// Both issue the scores of the next block before the sum of this one and make P or dS of the next
// under that sum. Neither waits for the other but by what is full and empty.
#pragma once

#include <cstdint>

#include "kernels/hopper/backward_products.cuh"

namespace toroid::hopper {

template <typename C, bool kOrdered>
__device__ void ConsumeValues(const BackwardParams& params, BackwardShared<C>& shared) {
  constexpr int kKeys = C::kKeys, kQueries = C::kQueries, kHeadDim = C::kHeadDim;
  const Place at(0);
  Cursor<2> slot;
  Cursor<1> kv;
  Cursor<2> exchange;
  Cursor<C::kStages> q, d_o;
  KeySums<kHeadDim> dv;
  float s[kQueries / 2];
  uint32_t p[kQueries / 4];
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    const AttentionTile& tile = task.tile;
    const int blocks = QueryBlocks<C>(tile);
    const FirstQueries firsts(tile, params.first_queries, at);
    dv.Clear();
    const auto issue_scores = [&] {
      shared.q_full[q.stage].Wait(q.phase);
      IssueTransposed<kKeys, kQueries, kHeadDim>(s, shared.k, shared.q[q.stage]);
    };
    const auto probabilities = [&](int block) {
      Pin(s);
      Probabilities<C>(s, shared.lse[q.stage], params.scale_log2, at, firsts, block * kQueries);
      Release(shared.q_empty[q.stage]);
      q.Advance();
    };
    const auto pass_on = [&] {
      Round(s, p);
      shared.d_s_empty[exchange.stage].Wait(exchange.phase ^ 1);
      StoreRounded<kKeys>(shared.d_s[exchange.stage], p, 0);
      Release(shared.p_full[exchange.stage]);
      exchange.Advance();
    };
    const auto issue_sum = [&] {
      shared.d_o_full[d_o.stage].Wait(d_o.phase);
      IssueSum<kQueries, kHeadDim>(dv, p, shared.d_o[d_o.stage]);
    };
    const auto end_sum = [&] {
      WaitFor<0>();
      dv.Hold();
      Release(shared.d_o_empty[d_o.stage]);
      d_o.Advance();
    };

    shared.kv_full.Wait(kv.phase);
    kv.Advance();
    issue_scores();
    WaitFor<0>();
    probabilities(0);
    pass_on();
    for (int block = 1; block < blocks; ++block) {
      issue_scores();
      issue_sum();
      WaitFor<1>();  // for S^T
      probabilities(block);
      end_sum();
      pass_on();
    }
    Release(shared.kv_empty);
    issue_sum();
    end_sum();
    const int kv_head = params.kv_index[task.head];
    AtRowTurn<C, kOrdered>(params, task, kv_head, 0, [&] {
      dv.Add(params.dv + tile.k_begin * params.dv_stride + kv_head * kHeadDim, params.dv_stride,
             1.f, 0, tile.k_count, at);
    });
  }
}

template <typename C, bool kOrdered>
__device__ void ConsumeKeys(const BackwardParams& params, BackwardShared<C>& shared) {
  constexpr int kKeys = C::kKeys, kQueries = C::kQueries, kHeadDim = C::kHeadDim;
  const Place at(0);
  Cursor<2> slot;
  Cursor<1> kv;
  Cursor<2> exchange;
  Cursor<C::kStages> q, d_o;
  KeySums<kHeadDim> dk;
  float d_p[kQueries / 2];
  uint32_t d_s[kQueries / 4];
  for (Task task; NextTask<C>(shared, slot, task);) {
    if (task.tile.q_count <= 0) continue;
    const AttentionTile& tile = task.tile;
    const int blocks = QueryBlocks<C>(tile);
    dk.Clear();
    const auto issue_scores = [&] {
      shared.d_o_full[d_o.stage].Wait(d_o.phase);
      IssueTransposed<kKeys, kQueries, kHeadDim>(d_p, shared.v, shared.d_o[d_o.stage]);
    };
    const auto gradients = [&] {
      Pin(d_p);
      shared.p_full[exchange.stage].Wait(exchange.phase);
#pragma unroll
      for (int j = 0; j < kQueries / 8; j += 2) {
        uint32_t p[4];
        LoadRounded<kKeys>(shared.d_s[exchange.stage], p, j, 0);
        ScoreGradients(d_p, p, shared.delta[d_o.stage], j, at);
        ScoreGradients(d_p, p + 2, shared.delta[d_o.stage], j + 1, at);
      }
      Release(shared.d_o_empty[d_o.stage]);
      d_o.Advance();
    };
    const auto pass_on = [&] {
      Round(d_p, d_s);
      StoreRounded<kKeys>(shared.d_s[exchange.stage], d_s, 0);
      PublishStores();
      Release(shared.d_s_full[exchange.stage]);
      exchange.Advance();
    };
    const auto issue_sum = [&] {
      shared.q_full[q.stage].Wait(q.phase);
      IssueSum<kQueries, kHeadDim>(dk, d_s, shared.q[q.stage]);
    };
    const auto end_sum = [&] {
      WaitFor<0>();
      dk.Hold();
      Release(shared.q_empty[q.stage]);
      q.Advance();
    };

    shared.kv_full.Wait(kv.phase);
    kv.Advance();
    issue_scores();
    WaitFor<0>();
    gradients();
    pass_on();
    for (int block = 1; block < blocks; ++block) {
      issue_scores();
      issue_sum();
      WaitFor<1>();  // for dP^T
      gradients();
      end_sum();
      pass_on();
    }
    Release(shared.kv_empty);
    issue_sum();
    end_sum();
    const int kv_head = params.kv_index[task.head];
    AtRowTurn<C, kOrdered>(params, task, kv_head, 1, [&] {
      dk.Add(params.dk + tile.k_begin * params.dk_stride + kv_head * kHeadDim, params.dk_stride,
             params.scale, 0, tile.k_count, at);
    });
  }
}

}  // namespace toroid::hopper
