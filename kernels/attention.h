// Attention over one tile: softmax(scale q k^T + mask) v by online softmax, continuing a carry.
//
//   s_ij = scale q_i . k_j for visible j;  lse_i = ln(e^lse_i + sum_j e^s_ij);
//   o_i = (o_i e^(old lse_i) + sum_j e^s_ij v_j) / e^lse_i
//
// Milakov & Gimelshein 2018; Rabe & Staats 2021; Dao et al. 2022. Carry: o normalised, lse; fresh:
// o = 0, lse = -inf. A row that sees no key keeps its bits.
//
// Key j is visible to query i if (not causal or p_j <= p_i) and (no window or p_j > p_i - window);
// positions ascend on both sides, so the visible keys of a query are one range, found by binary
// search, and key blocks outside of it cost nothing.
//
// Keys are taken in blocks of 64 by logical index whatever their place in memory, so pages and
// packed blocks give the same bits. So do any number of threads. Bits do differ between instruction
// sets and between ways of cutting the keys into tiles.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

template <typename T>
struct AttentionArgs {
  const T* q = nullptr;  // [t, heads, head_dim]
  int64_t q_stride = 0;  // elements between tokens
  const int32_t* q_positions = nullptr;
  // [n, g, head_dim] packed, or pages of them: f32, f64 or bf16; stride in elements between keys.
  const void* k = nullptr;
  const void* v = nullptr;
  DType kv_type = DType::kF32;
  int64_t k_stride = 0, v_stride = 0;
  const int32_t* k_positions = nullptr;  // by logical index
  const int32_t* page_table = nullptr;   // null: packed
  int64_t page_tokens = 1;
  const int32_t* kv_index = nullptr;  // [heads]
  int64_t heads = 0, head_dim = 0;    // head_dim <= kMaxHeadDim
  int64_t q_begin = 0, q_count = 0, k_begin = 0, k_count = 0;
  const int32_t* length = nullptr;  // on CUDA, may be null: keys from here on are not there
  bool causal = true;
  int64_t window = 0;  // 0: none
  double scale = 1;
  T* o = nullptr;  // [t, heads, head_dim]
  int64_t o_stride = 0;
  T* lse = nullptr;  // [t, heads]
  int64_t lse_stride = 0;
};

inline constexpr int64_t kMaxHeadDim = 1024;

void AttendTile(ThreadPool& pool, const AttentionArgs<float>& args);
void AttendTile(ThreadPool& pool, const AttentionArgs<double>& args);

// On a CUDA device, where `args.length` may stand; 64-byte aligned workspace that no other work
// uses meanwhile. counters: kNarrowCounters, zero before the first call and after each. overlap: it
// may be launched before what stands before it on the stream has ended (compute capability 9.0).
// Bits follow from the shape alone.
inline constexpr int64_t kNarrowCounters = 1024;
void AttendTile(CudaStream s, const AttentionArgs<float>& args, void* workspace,
                int64_t workspace_bytes, int32_t* counters, bool overlap);

// Backward over one tile: adds what the tile gives to dq, dk and dv. With s_ij as above, lse and o
// those of the whole softmax (all tiles merged) and delta_i = do_i . o_i:
//   p_ij = e^(s_ij - lse_i),   ds_ij = p_ij (do_i . v_j - delta_i),
//   dv_j += sum_i p_ij do_i,   dq_i += scale sum_j ds_ij k_j,   dk_j += scale sum_i ds_ij q_i.
// Dao et al. 2022, appendix B.2. The sums over any cut of queries and keys into tiles are the
// gradients of the whole. A row with lse = -inf saw nothing and gives nothing.
//
// Cut by shape alone: any number of threads gives the same bits. dq, dk and dv overlap nothing.
template <typename T>
struct AttentionBackwardArgs {
  // As the forward's, keys and values packed (no page table); o is not read, lse only read.
  AttentionArgs<T> forward;
  int64_t kv_heads = 0;  // of k, v, dk and dv; every kv_index is below it
  const T* d_o = nullptr;
  int64_t do_stride = 0;     // [t, heads, head_dim], elements between tokens; so everywhere
  const T* delta = nullptr;  // [t, heads]
  int64_t delta_stride = 0;
  T* dq = nullptr;  // [t, heads, head_dim]
  int64_t dq_stride = 0;
  T* dk = nullptr;  // [n, kv_heads, head_dim]
  T* dv = nullptr;
  int64_t dk_stride = 0, dv_stride = 0;
};

void AttendTileBackward(ThreadPool& pool, const AttentionBackwardArgs<float>& args);
void AttendTileBackward(ThreadPool& pool, const AttentionBackwardArgs<double>& args);

// delta_i = do_i . o_i for rows [t, heads] of head_dim.
template <typename T>
void AttentionDelta(ThreadPool& pool, const T* o, int64_t o_stride, const T* d_o, int64_t do_stride,
                    int64_t t, int64_t heads, int64_t head_dim, T* delta, int64_t delta_stride);

// On a CUDA device: float32 products on its plain cores, any shape. The same bits each time.
void AttendTileBackward(CudaStream s, const AttentionBackwardArgs<float>& args);
// do: f32 or bf16.
void AttentionDelta(CudaStream s, const float* o, int64_t o_stride, DType type, const void* d_o,
                    int64_t do_stride, int64_t t, int64_t heads, int64_t head_dim, float* delta,
                    int64_t delta_stride);

}  // namespace toroid
