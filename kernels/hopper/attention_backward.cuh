// The kernel of kernels/attention_hopper_backward.h. A task is a block of keys of one query head:
//
//   producer warpgroup, one warp:  K and V once, then Q, dO, lse and delta of block after block of
//                                  queries, through rings of kStages stages
//   consumer warpgroups, 64 keys each; scores are transposed, so that P^T and dS^T are operands
//   in registers:
//     S^T = K Q^T                      64 keys x kQueries
//     for each block of queries:
//       issue dP^T = V dO^T
//       P^T = 2^(S^T - lse)            under dP^T
//       issue dV += P^T dO
//       dS^T = P^T (dP^T - delta)      under dV; also to shared memory: dQ sums over all keys
//       issue dQ piece = dS K          64 queries x 64 columns for each warpgroup
//       issue dK += dS^T Q, the next S^T = K Q^T
//       the piece to shared memory     under these; the copy engine adds it in device memory
//     dK, dV are added in device memory
//
// Many thread blocks add to a piece of dQ, one for each block of keys, and to dK and dV, one for
// each query head of a KV head. kOrdered: they take turns, blocks of keys and heads ascending,
// which is the order in which tasks are taken, so that nobody waits for a task that has not begun.
// A warp for each consumer waits for the turns of its pieces, adds them and passes the turns on
// meanwhile.
//
// Atomics of the consumers in the copy engine's place cost a fifth of the speed.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/hopper/attention_tasks.cuh"
#include "kernels/hopper/fragments.cuh"
#include "kernels/hopper/mbarrier.cuh"
#include "kernels/hopper/online_softmax.cuh"
#include "kernels/hopper/tma.cuh"
#include "kernels/hopper/turns_in_memory.cuh"
#include "kernels/hopper/warpgroup.cuh"
#include "kernels/hopper/wgmma.cuh"

namespace toroid::hopper {

template <int kHeadDimensions, int kQueryBlock, int kRingStages>
struct BackwardCut {
  static constexpr int kHeadDim = kHeadDimensions, kQueries = kQueryBlock, kStages = kRingStages;
  static constexpr int kConsumers = 2, kKeys = kConsumers * kMmaRows;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroupThreads;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  static constexpr int kQBytes = kQueries * kHeadDim * 2, kKvBytes = kKeys * kHeadDim * 2;

  static_assert(kQueries / kMmaRows * (kHeadDim / kPanelColumns) == kConsumers,
                "dQ has one piece of 64 x 64 per warpgroup");
  // What a thread block is launched with: more would be waited for for ever.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8 * (1 + kConsumers);
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= kLaunchRegisters);
};

template <typename C>
struct BackwardShared {
  alignas(kSwizzleAtomBytes) __nv_bfloat16 k[C::kKeys * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 v[C::kKeys * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 q[C::kStages][C::kQueries * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 d_o[C::kStages][C::kQueries * C::kHeadDim];
  // dS^T in panels of 64 queries. Two: a warpgroup that writes the next one has met the other after
  // that finished reading the last but one.
  alignas(kSwizzleAtomBytes) __nv_bfloat16 d_s[2][C::kKeys * C::kQueries];
  alignas(kSwizzleAtomBytes) float dq[C::kConsumers][kMmaRows * kPanelColumns];
  alignas(16) float lse[C::kStages][C::kQueries];
  alignas(16) float delta[C::kStages][C::kQueries];
  Barrier kv_full, kv_empty;
  Barrier q_full[C::kStages], q_empty[C::kStages], d_o_full[C::kStages], d_o_empty[C::kStages];
  Barrier task_full[2], task_empty[2];
  Barrier dq_full[C::kConsumers], dq_empty[C::kConsumers];  // in order alone
  Task tasks[2];
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
  int32_t* turns;  // of PieceTurns, then of RowTurns; null: unordered
  int kv_heads;
};

// Turns of the pieces of dQ, 64 queries by 64 columns.
template <typename C>
__host__ __device__ int64_t PieceTurns(int64_t q_tokens, int heads) {
  constexpr int kPair = 2 * kMmaRows;  // a last block of queries may be beyond the last by half
  return (q_tokens + kPair - 1) / kPair * 2 * (C::kHeadDim / kPanelColumns) * heads;
}
// Turns of the rows of dK and dV, 64 keys of a KV head.
template <typename C>
__host__ __device__ int64_t RowTurns(int tile_count, int kv_heads) {
  return int64_t{tile_count} * kv_heads * C::kConsumers;
}

template <typename C>
__device__ int QueryBlocks(const AttentionTile& tile) {
  return (tile.q_count + C::kQueries - 1) / C::kQueries;
}

// One warp; its first lane speaks to the copy engine, all load lse and delta.
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

    const AttentionTile& tile = task.tile;
    if (tile.q_count <= 0) continue;
    shared.kv_empty.Wait(kv.phase ^ 1);
    kv.Advance();
    if (lane == 0) {
      const int kv_head = params.kv_index[task.head];
      shared.kv_full.ArriveExpecting(2 * C::kKvBytes);
      LoadTile(shared.k, &params.k, tile.k_begin, kv_head, &shared.kv_full, read_once);
      LoadTile(shared.v, &params.v, tile.k_begin, kv_head, &shared.kv_full, read_once);
    }
    const float2* rows = params.rows + task.head * params.q_tokens + tile.q_begin;
    for (int block = 0; block < QueryBlocks<C>(tile); ++block, stage.Advance()) {
      const int s = stage.stage, first = block * C::kQueries;
      shared.q_empty[s].Wait(stage.phase ^ 1);
      if (lane == 0) {
        shared.q_full[s].ArriveExpecting(C::kQBytes);
        LoadTile(shared.q[s], &params.q, tile.q_begin + first, task.head, &shared.q_full[s], keep);
      }
      shared.d_o_empty[s].Wait(stage.phase ^ 1);
      if (lane == 0) {
        shared.d_o_full[s].ArriveExpecting(C::kQBytes);
        LoadTile(shared.d_o[s], &params.d_o, tile.q_begin + first, task.head, &shared.d_o_full[s],
                 keep);
      }
      // Beyond the tile's queries p is 0.
      for (int i = lane; i < C::kQueries; i += kWarpThreads) {
        const float2 row =
            first + i < tile.q_count ? rows[first + i] : make_float2(-MinusInfinity(), 0);
        shared.lse[s][i] = row.x;
        shared.delta[s][i] = row.y;
      }
      shared.q_full[s].Arrive();
      shared.d_o_full[s].Arrive();
    }
  }
  if (lane == 0) params.tasks.Finish();
}

// The first query of a tile that sees each of a thread's keys, and the last of its warpgroup's.
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

// dP^T to dS^T = P^T (dP^T - delta), with P as it was rounded for dV: its float32 registers are the
// next scores' by then.
template <typename C>
__device__ void ScoreGradients(float (&d_p)[C::kQueries / 2], const uint32_t (&p)[C::kQueries / 4],
                               const float* delta, const Place& at) {
#pragma unroll
  for (int j = 0; j < C::kQueries / 8; ++j) {
    const float2 row = *reinterpret_cast<const float2*>(delta + 8 * j + at.column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(p[2 * j + h]));
      d_p[4 * j + 2 * h] = pair.x * (d_p[4 * j + 2 * h] - row.x);
      d_p[4 * j + 2 * h + 1] = pair.y * (d_p[4 * j + 2 * h + 1] - row.y);
    }
  }
}

// Issues D = A B^T, 64 rows of A by kColumns rows of B, both of kHeadDim columns.
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

// Issues D += A B, A in registers, B of kRows rows.
template <int kRows, int kHeadDim>
__device__ void IssueSum(float (&d)[kHeadDim / 2], uint32_t (&a)[kRows / 4],
                         const __nv_bfloat16* b) {
  const AlongRows<kRows> along_b(b);
  Pin(a);
  Pin(d);
  Fence();
#pragma unroll
  for (int step = 0; step < kRows / kMmaDepth; ++step) {
    MmaRegisterShared(d, a + 4 * step, along_b.Step(step));
  }
  Commit();
}

// Issues the piece D = dS K: 64 queries (a panel of dS^T) by 64 columns (a panel of K), over all
// keys.
template <int kKeys>
__device__ void IssuePiece(float (&d)[kPanelColumns / 2], const __nv_bfloat16* d_s_panel,
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

// Which piece of dQ a consumer makes of a block of queries.
template <typename C>
struct Piece {
  static constexpr int kRows = C::kQueries == kMmaRows ? 0 : kMmaRows;  // from piece to piece
  static constexpr int kColumns = kPanelColumns - kRows;
  int row, column;

  __device__ Piece(const AttentionTile& tile, int block, int warpgroup)
      : row(tile.q_begin + block * C::kQueries + warpgroup * kRows), column(warpgroup * kColumns) {}
  __device__ void Add(const CUtensorMap* dq, const float* piece, int head) const {
    AddTile(dq, piece, row, column / 32, head);
  }
};

// One thread: the pieces of one consumer, each at its turn.
template <typename C>
__device__ void AddInOrder(const BackwardParams& params, BackwardShared<C>& shared, int warpgroup) {
  Cursor<2> slot;
  Cursor<1> dq;
  for (;;) {
    shared.task_full[slot.stage].Wait(slot.phase);
    const Task task = shared.tasks[slot.stage];
    shared.task_empty[slot.stage].Arrive();
    slot.Advance();
    if (task.head < 0) break;

    if (task.tile.q_count <= 0) continue;
    int32_t* turns = params.turns + task.head * PieceTurns<C>(params.q_tokens, 1);
    for (int block = 0; block < QueryBlocks<C>(task.tile); ++block, dq.Advance()) {
      const Piece<C> piece(task.tile, block, warpgroup);
      int32_t* turn = turns + piece.row / kMmaRows * (C::kHeadDim / kPanelColumns) +
                      piece.column / kPanelColumns;
      AwaitTurn(turn, task.number);
      shared.dq_full[warpgroup].Wait(dq.phase);
      piece.Add(&params.dq, shared.dq[warpgroup], task.head);
      WaitForReads();
      shared.dq_empty[warpgroup].Arrive();
      WaitForAdds();
      PassTurn(turn);
    }
  }
}

template <typename C, bool kOrdered>
__device__ void ConsumeBackward(const BackwardParams& params, BackwardShared<C>& shared,
                                int warpgroup) {
  constexpr int kKeys = C::kKeys, kQueries = C::kQueries, kHeadDim = C::kHeadDim;
  constexpr int kPieceRows = Piece<C>::kRows, kPieceColumns = Piece<C>::kColumns;
  const Place at(warpgroup);
  const __nv_bfloat16* my_k = shared.k + warpgroup * kMmaRows * kPanelColumns;
  const __nv_bfloat16* my_v = shared.v + warpgroup * kMmaRows * kPanelColumns;
  const __nv_bfloat16* k_panel = shared.k + (kPieceColumns ? warpgroup * kKeys * kPanelColumns : 0);
  constexpr int kAllConsumers = 1;
  const int my_barrier = 2 + warpgroup;
  const bool speaks = threadIdx.x % kWarpgroupThreads == 0;  // to the copy engine
  Cursor<1> kv, dq_piece;
  Cursor<2> slot, exchange;
  Cursor<C::kStages> stage;
  float dk[kHeadDim / 2], dv[kHeadDim / 2], s[kQueries / 2], d_p[kQueries / 2];
  uint32_t p_rounded[kQueries / 4], d_s_rounded[kQueries / 4];
  for (;;) {
    shared.task_full[slot.stage].Wait(slot.phase);
    const Task task = shared.tasks[slot.stage];
    Release(shared.task_empty[slot.stage]);
    slot.Advance();
    if (task.head < 0) break;

    const AttentionTile& tile = task.tile;
    if (tile.q_count <= 0) continue;
    const int blocks = QueryBlocks<C>(tile);
    const FirstQueries firsts(tile, params.first_queries, at);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) dk[i] = dv[i] = 0;
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
      Round(s, p_rounded);
      IssueSum<kQueries, kHeadDim>(dv, p_rounded, shared.d_o[now]);
      WaitFor<1>();  // for dP^T
      Pin(d_p);
      ScoreGradients<C>(d_p, p_rounded, shared.delta[now], at);
      Round(d_p, d_s_rounded);
      __nv_bfloat16* d_s = shared.d_s[exchange.stage];
      exchange.Advance();
      StoreRounded<kKeys>(d_s, d_s_rounded, warpgroup);
      PublishStores();
      Meet<C::kConsumers>(kAllConsumers);  // dS^T of all keys is there
      float dq[kPanelColumns / 2];
      IssuePiece<kKeys>(dq, d_s + (kPieceRows ? warpgroup * kKeys * kPanelColumns : 0), k_panel);
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
        shared.dq_empty[warpgroup].Wait(dq_piece.phase ^ 1);
        StorePiece(shared.dq[warpgroup], dq, params.scale, at);
        PublishStores();
        Release(shared.dq_full[warpgroup]);
        dq_piece.Advance();
      } else {
        if (speaks) WaitForReads();
        Meet<1>(my_barrier);  // the piece of the block before was read
        StorePiece(shared.dq[warpgroup], dq, params.scale, at);
        PublishStores();
        Meet<1>(my_barrier);  // the piece is there
        if (speaks) {
          Piece<C>(tile, block, warpgroup).Add(&params.dq, shared.dq[warpgroup], task.head);
        }
      }
      WaitFor<0>();  // for dK and S^T
      Pin(s);
      Release(shared.q_empty[now]);
    };
    for (int block = 0; block < blocks - 1; ++block) fold(block, std::false_type());
    fold(blocks - 1, std::true_type());
    Pin(dk);
    Pin(dv);
    Release(shared.kv_empty);
    const int kv_head = params.kv_index[task.head];
    int32_t* row_turn = nullptr;
    if constexpr (kOrdered) {
      if (speaks) {
        row_turn = params.turns + PieceTurns<C>(params.q_tokens, params.tasks.heads) +
                   (int64_t{task.number} * params.kv_heads + kv_head) * C::kConsumers + warpgroup;
        int before = 0;  // heads of this KV head
        for (int head = 0; head < task.head; ++head) before += params.kv_index[head] == kv_head;
        AwaitTurn(row_turn, before);
      }
      Meet<1>(my_barrier);  // it is this warpgroup's turn
    }
    AddRows(params.dk + tile.k_begin * params.dk_stride + kv_head * kHeadDim, params.dk_stride, dk,
            params.scale, warpgroup * kMmaRows, tile.k_count, at);
    AddRows(params.dv + tile.k_begin * params.dv_stride + kv_head * kHeadDim, params.dv_stride, dv,
            1.f, warpgroup * kMmaRows, tile.k_count, at);
    if constexpr (kOrdered) {
      __threadfence();
      Meet<1>(my_barrier);  // all have added
      if (speaks) PassTurn(row_turn);
    }
  }
  if (speaks) WaitForReads();  // before shared memory goes away
}

template <typename C, bool kOrdered>
__global__ void __launch_bounds__(C::kThreads, 1)
    AttentionBackwardKernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = SharedAddress(raw) % kSwizzleAtomBytes;
  auto& shared = *reinterpret_cast<BackwardShared<C>*>(
      raw + (misaligned ? kSwizzleAtomBytes - misaligned : 0));
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = C::kConsumers * kWarpgroupWarps;
    shared.kv_full.Init(1);
    shared.kv_empty.Init(kConsumerWarps);
    for (int i = 0; i < C::kStages; ++i) {
      shared.q_full[i].Init(1 + kWarpThreads);  // the copy's bytes, and lse and delta by lanes
      shared.d_o_full[i].Init(1 + kWarpThreads);
      shared.q_empty[i].Init(kConsumerWarps);
      shared.d_o_empty[i].Init(kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) {
      shared.task_full[i].Init(1);
      shared.task_empty[i].Init(kConsumerWarps + (kOrdered ? C::kConsumers : 0));
    }
    for (int i = 0; i < C::kConsumers; ++i) {
      shared.dq_full[i].Init(kWarpgroupWarps);
      shared.dq_empty[i].Init(1);
    }
    FenceBarrierInit();
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
    if (warp == 0) {
      ProduceBackward<C, kOrdered>(params, shared);
    } else if (kOrdered && warp <= C::kConsumers && threadIdx.x % kWarpThreads == 0) {
      AddInOrder<C>(params, shared, warp - 1);
    }
  } else {
    TakeRegisters<C::kConsumerRegisters>();
    ConsumeBackward<C, kOrdered>(params, shared, warpgroup - 1);
  }
}

}  // namespace toroid::hopper
