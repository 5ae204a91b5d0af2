// The kernel of kernels/attention_hopper.h. One thread block per multiprocessor takes tiles from a
// common counter:
//
//   producer warpgroup, one thread:  for each tile: Q once, then K and V of block after block of
//   keys,
//                                    through rings of kStages stages filled by the copy engine
//   consumer warpgroups, 64 rows each, the last keys first:
//     S = Q K_last^T;  P = softmax step(S)
//     for each earlier block:
//       issue S' = Q K^T, issue O += P V      the tensor cores work on both, in this order,
//       P' = softmax step(S')                 this under O += P V
//       O *= a;  P = P'                       a: the factor by which the maximum moved
//     O += P V;  divide by the sum, write (o, lse)
//
// Consumers issue in turns: while one does its softmax the other has the tensor cores.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/hopper/attention_tasks.cuh"
#include "kernels/hopper/mbarrier.cuh"
#include "kernels/hopper/online_softmax.cuh"
#include "kernels/hopper/tma.cuh"
#include "kernels/hopper/warpgroup.cuh"
#include "kernels/hopper/wgmma.cuh"

namespace toroid::hopper {

// How a head dim is cut. Registers per consumer thread: O, S, the rounded P of the block before.
template <int kHeadDimensions, int kConsumerGroups, int kKeyBlock, int kRingStages>
struct Cut {
  static constexpr int kHeadDim = kHeadDimensions, kConsumers = kConsumerGroups;
  static constexpr int kKeys = kKeyBlock, kStages = kRingStages;
  static constexpr int kRows = kConsumers * kMmaRows;
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroupThreads;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static constexpr int kQBytes = kRows * kHeadDim * 2, kKvBytes = kKeys * kHeadDim * 2;

  static_assert(kHeadDim % kPanelColumns == 0 && kKeys % kMmaDepth == 0 && kRows <= 256);
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 65536 / kWarpgroupThreads);
  static_assert(kHeadDim / 2 + kKeys / 2 + kKeys / 4 + 24 <= kConsumerRegisters, "it would spill");
  static_assert(kKeys * 128 % kSwizzleAtomBytes == 0, "a panel begins on a swizzle atom");
};

template <typename C>
struct Shared {
  alignas(kSwizzleAtomBytes) __nv_bfloat16 q[C::kRows * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 k[C::kStages][C::kKeys * C::kHeadDim];
  alignas(kSwizzleAtomBytes) __nv_bfloat16 v[C::kStages][C::kKeys * C::kHeadDim];
  Barrier q_full, q_empty;
  Barrier k_full[C::kStages], k_empty[C::kStages], v_full[C::kStages], v_empty[C::kStages];
  Barrier task_full[2], task_empty[2];
  Task tasks[2];
};

struct Params {
  CUtensorMap q, k, v;
  TaskList tasks;
  const int32_t* kv_index;
  const int32_t* limits;  // null: tiles have diagonals
  float* o;
  float* lse;
  int64_t o_stride, lse_stride;
  int head_dim;
  float scale_log2;
  bool fresh;
};

template <typename C>
__device__ int KeyBlocks(const AttentionTile& tile, const int32_t* limits) {
  return (Limit(tile, tile.q_count - 1, limits) + C::kKeys - 1) / C::kKeys;
}

template <typename C>
__device__ void Produce(const Params& params, Shared<C>& shared) {
  const uint64_t keep = KeepInL2(), read_once = ReadOnceFromL2();
  Cursor<1> q;
  Cursor<2> slot;
  Cursor<C::kStages> k, v;
  int index = blockIdx.x;
  for (;;) {
    const Task task = params.tasks.At(index);
    shared.task_empty[slot.stage].Wait(slot.phase ^ 1);
    shared.tasks[slot.stage] = task;
    shared.task_full[slot.stage].Arrive();
    slot.Advance();
    if (task.head < 0) break;
    index = params.tasks.Next();
    const int blocks = KeyBlocks<C>(task.tile, params.limits);
    if (blocks == 0) continue;

    const int kv_head = params.kv_index[task.head];
    const auto load_k = [&](int block) {
      shared.k_empty[k.stage].Wait(k.phase ^ 1);
      shared.k_full[k.stage].ArriveExpecting(C::kKvBytes);
      LoadTile(shared.k[k.stage], &params.k, task.tile.k_begin + block * C::kKeys, kv_head,
               &shared.k_full[k.stage], keep);
      k.Advance();
    };
    const auto load_v = [&](int block) {
      shared.v_empty[v.stage].Wait(v.phase ^ 1);
      shared.v_full[v.stage].ArriveExpecting(C::kKvBytes);
      LoadTile(shared.v[v.stage], &params.v, task.tile.k_begin + block * C::kKeys, kv_head,
               &shared.v_full[v.stage], keep);
      v.Advance();
    };
    load_k(blocks - 1);
    shared.q_empty.Wait(q.phase ^ 1);
    shared.q_full.ArriveExpecting(C::kQBytes);
    LoadTile(shared.q, &params.q, task.tile.q_begin, task.head, &shared.q_full, read_once);
    q.Advance();
    for (int block = blocks - 2; block >= 0; --block) {
      load_k(block);
      load_v(block + 1);
    }
    load_v(0);
  }
  params.tasks.Finish();
}

// The rows of one thread: which they are, and their carry in device memory.
struct Rows {
  int first;     // row h is first + 8 h of the tile
  int column;    // of the fragment: 8 j + column + e
  int limit[2];  // visible keys; negative: not a row of the tile

  __device__ Rows(const AttentionTile& tile, int warpgroup, const int32_t* limits) {
    const int thread = threadIdx.x % kWarpgroupThreads, lane = thread % kWarpThreads;
    first = warpgroup * kMmaRows + thread / kWarpThreads * 16 + lane / 4;
    column = lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      limit[h] = first + 8 * h < tile.q_count ? Limit(tile, first + 8 * h, limits) : -1;
    }
  }
};

// The carry is the state of the fold: maximum lse, sum 1, o.
template <int kCount>
__device__ void ReadCarry(const Params& params, const Task& task, const Rows& rows,
                          float (&o)[kCount], OnlineSoftmax& softmax) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] = 0;
  if (params.fresh) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (rows.limit[h] <= 0) continue;
    const int64_t token = task.tile.q_begin + rows.first + 8 * h;
    const float lse = params.lse[token * params.lse_stride + task.head];
    if (lse == MinusInfinity()) continue;
    softmax.max[h] = lse * kLog2E;
    softmax.sum[h] = rows.column == 0 ? 1.f : 0.f;  // one of the four threads of the row
    const float* from =
        params.o + token * params.o_stride + task.head * params.head_dim + rows.column;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      const float2 pair = __ldcs(reinterpret_cast<const float2*>(from + 8 * j));
      o[4 * j + 2 * h] = pair.x;
      o[4 * j + 2 * h + 1] = pair.y;
    }
  }
}

template <int kCount>
__device__ void WriteCarry(const Params& params, const Task& task, const Rows& rows,
                           const float (&o)[kCount], const OnlineSoftmax& softmax) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = RowSum(softmax.sum[h]);
    if (rows.limit[h] < (params.fresh ? 0 : 1)) continue;
    const int64_t token = task.tile.q_begin + rows.first + 8 * h;
    const float inverse = sum == 0 ? 0.f : 1.f / sum;
    if (rows.column == 0) {
      params.lse[token * params.lse_stride + task.head] =
          sum == 0 ? MinusInfinity() : (softmax.max[h] + __log2f(sum)) * kLn2;
    }
    float* to = params.o + token * params.o_stride + task.head * params.head_dim + rows.column;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      __stcs(reinterpret_cast<float2*>(to + 8 * j),
             make_float2(o[4 * j + 2 * h] * inverse, o[4 * j + 2 * h + 1] * inverse));
    }
  }
}

// Hides keys of block `block` at and beyond each row's limit.
template <typename C>
__device__ void Mask(float (&s)[C::kKeys / 2], const Rows& rows, int block) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int limit = rows.limit[h] - block * C::kKeys - rows.column;
#pragma unroll
    for (int j = 0; j < C::kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * j + e >= limit) s[4 * j + 2 * h + e] = MinusInfinity();
      }
    }
  }
}

// Issues S = Q K^T of this warpgroup's 64 rows of Q.
template <typename C>
__device__ void IssueScores(float (&s)[C::kKeys / 2], const __nv_bfloat16* q,
                            const __nv_bfloat16* k) {
  const AlongColumns<C::kRows> a(q);
  const AlongColumns<C::kKeys> b(k);
  Pin(s);
  Fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / kMmaDepth; ++step) {
    MmaSharedShared(s, a.Step(step), b.Step(step), step > 0);
  }
  Commit();
}

// Issues O += P V.
template <typename C>
__device__ void IssueValues(float (&o)[C::kHeadDim / 2], uint32_t (&p)[C::kKeys / 4],
                            const __nv_bfloat16* v) {
  const AlongRows<C::kKeys> b(v);
  Pin(p);
  Pin(o);
  Fence();
#pragma unroll
  for (int step = 0; step < C::kKeys / kMmaDepth; ++step) {
    MmaRegisterShared(o, p + 4 * step, b.Step(step));
  }
  Commit();
}

template <int kCount>
__device__ void Rescale(float (&o)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= factor[i / 2 % 2];
}

template <typename C>
__device__ void Consume(const Params& params, Shared<C>& shared, int warpgroup) {
  const Turns<C::kConsumers> turns(warpgroup);
  const __nv_bfloat16* my_q = shared.q + warpgroup * kMmaRows * kPanelColumns;
  Cursor<1> q;
  Cursor<2> slot;
  Cursor<C::kStages> k, v;
  float o[C::kHeadDim / 2], s[C::kKeys / 2];
  uint32_t p[C::kKeys / 4];
  for (;;) {
    shared.task_full[slot.stage].Wait(slot.phase);
    const Task task = shared.tasks[slot.stage];
    Release(shared.task_empty[slot.stage]);
    slot.Advance();
    if (task.head < 0) return;

    const Rows rows(task.tile, warpgroup, params.limits);
    OnlineSoftmax softmax;
    float rescale[2];
    ReadCarry(params, task, rows, o, softmax);
    const int blocks = KeyBlocks<C>(task.tile, params.limits);
    // Blocks without a mask.
    const int clear = Limit(task.tile, warpgroup * kMmaRows, params.limits) / C::kKeys;
    if (blocks > 0) {
      shared.q_full.Wait(q.phase);
      q.Advance();
      shared.k_full[k.stage].Wait(k.phase);
      IssueScores<C>(s, my_q, shared.k[k.stage]);
      WaitFor<0>();
      Pin(s);
      Release(shared.k_empty[k.stage]);
      k.Advance();
      if (blocks == 1) Release(shared.q_empty);
      if (blocks - 1 >= clear) Mask<C>(s, rows, blocks - 1);
      softmax.Fold(s, params.scale_log2, rescale);
      Round(s, p);
      Rescale(o, rescale);
    }
    for (int block = blocks - 2; block >= 0; --block) {
      shared.k_full[k.stage].Wait(k.phase);
      turns.Wait();
      IssueScores<C>(s, my_q, shared.k[k.stage]);
      shared.v_full[v.stage].Wait(v.phase);
      IssueValues<C>(o, p, shared.v[v.stage]);
      turns.Pass();
      WaitFor<1>();  // for S
      Pin(s);
      Release(shared.k_empty[k.stage]);
      k.Advance();
      if (block == 0) Release(shared.q_empty);
      if (block >= clear) Mask<C>(s, rows, block);
      softmax.Fold(s, params.scale_log2, rescale);
      WaitFor<0>();  // for O, and for P to be read
      Pin(o);
      Release(shared.v_empty[v.stage]);
      v.Advance();
      Round(s, p);
      Rescale(o, rescale);
    }
    if (blocks > 0) {
      shared.v_full[v.stage].Wait(v.phase);
      IssueValues<C>(o, p, shared.v[v.stage]);
      WaitFor<0>();
      Pin(o);
      Release(shared.v_empty[v.stage]);
      v.Advance();
    }
    WriteCarry(params, task, rows, o, softmax);
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    AttentionKernel(const __grid_constant__ Params params) {
  extern __shared__ uint8_t raw[];
  const uint32_t misaligned = SharedAddress(raw) % kSwizzleAtomBytes;
  auto& shared =
      *reinterpret_cast<Shared<C>*>(raw + (misaligned ? kSwizzleAtomBytes - misaligned : 0));
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = C::kConsumers * kWarpgroupWarps;
    shared.q_full.Init(1);
    shared.q_empty.Init(kConsumerWarps);
    for (int i = 0; i < C::kStages; ++i) {
      shared.k_full[i].Init(1);
      shared.v_full[i].Init(1);
      shared.k_empty[i].Init(kConsumerWarps);
      shared.v_empty[i].Init(kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) {
      shared.task_full[i].Init(1);
      shared.task_empty[i].Init(kConsumerWarps);
    }
    FenceBarrierInit();
    PrefetchTensorMap(&params.q);
    PrefetchTensorMap(&params.k);
    PrefetchTensorMap(&params.v);
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupThreads, 0);
  if (warpgroup == 0) {
    GiveBackRegisters<C::kProducerRegisters>();
    if (threadIdx.x == 0) Produce<C>(params, shared);
  } else {
    TakeRegisters<C::kConsumerRegisters>();
    Consume<C>(params, shared, warpgroup - 1);
  }
}

}  // namespace toroid::hopper
