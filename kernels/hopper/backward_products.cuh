// What the consumers of attention_backward.cuh do with a block of queries: the products, and P and
// dS between them. Scores are transposed, [keys, queries], so that P^T and dS^T are operands in
// registers.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/hopper/backward_shared.cuh"
#include "kernels/hopper/fragments.cuh"
#include "kernels/hopper/online_softmax.cuh"
#include "kernels/hopper/turns_in_memory.cuh"
#include "kernels/hopper/wgmma.cuh"

namespace toroid::hopper {

inline constexpr int kColumnsMost = 128;  // of an instruction with sums of its own

// The first query of a tile that sees each of a thread's keys, and the last of its 64 keys'.
struct FirstQueries {
  int of_key[2], of_last;

  __device__ FirstQueries(const AttentionTile& tile, const int32_t* firsts, const Place& at) {
    const auto first = [&](int key) {
      if (key >= tile.k_count) return kAllVisible;  // no key: seen by nobody
      return firsts == nullptr ? key - tile.diagonal : firsts[tile.k_begin + key] - tile.q_begin;
    };
    const int key = at.warpgroup * kMmaRows + at.first;
    of_key[0] = first(key);
    of_key[1] = first(key + 8);
    of_last = first(at.warpgroup * kMmaRows + kMmaRows - 1);
  }
};

// S^T to P^T, of the block of queries from `begin` on: the query sees a key from its first on.
template <typename C>
__device__ void Probabilities(float (&s)[C::kQueries / 2], const float* lse, float scale_log2,
                              const Place& at, const FirstQueries& firsts, int begin) {
#pragma unroll
  for (int j = 0; j < C::kQueries / 8; ++j) {
    const float2 row = *reinterpret_cast<const float2*>(lse + 8 * j + at.column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      s[4 * j + 2 * h] = Exp2(fmaf(s[4 * j + 2 * h], scale_log2, -row.x));
      s[4 * j + 2 * h + 1] = Exp2(fmaf(s[4 * j + 2 * h + 1], scale_log2, -row.y));
    }
  }
  if (firsts.of_last <= begin) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int first_query = firsts.of_key[h] - begin - at.column;
#pragma unroll
    for (int j = 0; j < C::kQueries / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * j + e < first_query) s[4 * j + 2 * h + e] = 0;
      }
    }
  }
}

// Columns 8 j .. 8 j + 7 of dP^T to dS^T = P^T (dP^T - delta), with P as it was rounded for dV: its
// float32 registers are the next scores' by then.
__device__ inline void ScoreGradients(float* d_p, const uint32_t* p, const float* delta, int j,
                                      const Place& at) {
  const float2 row = *reinterpret_cast<const float2*>(delta + 8 * j + at.column);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float2 pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(p[h]));
    d_p[4 * j + 2 * h] = pair.x * (d_p[4 * j + 2 * h] - row.x);
    d_p[4 * j + 2 * h + 1] = pair.y * (d_p[4 * j + 2 * h + 1] - row.y);
  }
}

// Issues D = A B^T, 64 rows of A by kRowsB rows of B, both of kHeadDim columns.
template <int kRowsA, int kRowsB, int kHeadDim>
__device__ void IssueTransposed(float (&d)[kRowsB / 2], const __nv_bfloat16* a,
                                const __nv_bfloat16* b) {
  const AlongColumns<kRowsA> along_a(a);
  const AlongColumns<kRowsB> along_b(b);
  Pin(d);
  Fence();
#pragma unroll
  for (int step = 0; step < kHeadDim / kMmaDepth; ++step) {
    MmaSharedShared(d, along_a.Step(step), along_b.Step(step), step > 0);
  }
  Commit();
}

// A consumer's dK or dV: in halves where one instruction of 256 columns would need more registers
// than a thread begins with.
template <int kHeadDim>
struct KeySums {
  static constexpr int kHalves = kHeadDim / kColumnsMost > 1 ? 2 : 1, kColumns = kHeadDim / kHalves;
  float of[kHalves][kColumns / 2];

  __device__ void Clear() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) of[half][i] = 0;
    }
  }
  __device__ void Hold() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) Pin(of[half]);
  }
  // Adds them to rows row0 + first + 8 h of `to`, below `rows`.
  __device__ void Add(float* to, int64_t stride, float scale, int row0, int rows, const Place& at) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      AddRows(to + half * kColumns, stride, of[half], scale, row0, rows, at);
    }
  }
};

// Issues D += A B, A in registers, B of kRows rows.
template <int kRows, int kHeadDim>
__device__ void IssueSum(KeySums<kHeadDim>& d, uint32_t (&a)[kRows / 4], const __nv_bfloat16* b) {
  using Sums = KeySums<kHeadDim>;
  Pin(a);
  d.Hold();
  Fence();
#pragma unroll
  for (int half = 0; half < Sums::kHalves; ++half) {
    const AlongRows<kRows> along_b(b + half * Sums::kColumns * kRows);
#pragma unroll
    for (int step = 0; step < kRows / kMmaDepth; ++step) {
      MmaRegisterShared(d.of[half], a + 4 * step, along_b.Step(step));
    }
  }
  Commit();
}

// Issues a part of dQ, D = dS K: 64 queries (a panel of dS^T) by 64 columns (a panel of K), over
// all keys.
template <int kKeys>
__device__ void IssueQueryGradients(float (&d)[kPanelColumns / 2], const __nv_bfloat16* d_s_panel,
                                    const __nv_bfloat16* k_panel) {
  const AlongRows<kKeys> along_d_s(d_s_panel), along_k(k_panel);
  Pin(d);
  Fence();
#pragma unroll
  for (int step = 0; step < kKeys / kMmaDepth; ++step) {
    MmaSharedShared<true>(d, along_d_s.Step(step), along_k.Step(step), step > 0);
  }
  Commit();
}

// Calls `add`, which adds a consumer's gradients of a task's keys in device memory; in order at its
// turn, after the heads of the same KV head that come before.
template <typename C, bool kOrdered, typename Add>
__device__ void AtRowTurn(const BackwardParams& params, const Task& task, int kv_head, int consumer,
                          const Add& add) {
  const int my_barrier = 2 + consumer;
  const bool speaks = threadIdx.x % kWarpgroupThreads == 0;
  const auto turn = [&] {
    return params.turns + QueryTurns<C>(params.q_tokens, params.tasks.heads) +
           (int64_t{task.number} * params.kv_heads + kv_head) * C::kConsumers + consumer;
  };
  if constexpr (kOrdered) {
    if (speaks) {
      int before = 0;
      for (int head = 0; head < task.head; ++head) before += params.kv_index[head] == kv_head;
      AwaitTurn(turn(), before);
    }
    Meet<1>(my_barrier);  // it is this warpgroup's turn
  }
  add();
  if constexpr (kOrdered) {
    __threadfence();
    Meet<1>(my_barrier);  // all have added
    if (speaks) PassTurn(turn());
  }
}

}  // namespace toroid::hopper
