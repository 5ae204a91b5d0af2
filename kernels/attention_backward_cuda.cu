// Plain CUDA backward of attention for every shape, in tiles of 64 queries by 64 keys. Two kernels,
// each of which makes the scores anew: one owns queries and adds to dq, one owns keys and adds to
// dk and dv, so that no sum depends on the order of blocks.
#include "kernels/attention_tile.cuh"

namespace toroid {

namespace {

using Args = AttentionBackwardArgs<float>;

// What of 64 queries of one head the backward reads besides their vectors.
struct QueryRows {
  KeyRange seen[kTile];
  float lse[kTile], delta[kTile];

  // The rows from first_query on, `count` of them, as they see keys [k_begin, k_end).
  __device__ void Load(const Args& args, int64_t head, int64_t first_query, int64_t count,
                       int64_t k_begin, int64_t k_end) {
    const AttentionArgs<float>& a = args.forward;
    const int r = threadIdx.x;
    if (r >= kTile) return;
    seen[r] = {0, 0};
    if (r >= count) return;
    const int64_t row = first_query + r;
    lse[r] = a.lse[row * a.lse_stride + head];
    delta[r] = args.delta[row * args.delta_stride + head];
    if (lse[r] > -INFINITY) seen[r] = VisibleKeys(a, row, k_begin, k_end);
  }
  __device__ bool Sees(int r, int64_t key) const {
    return key >= seen[r].begin && key < seen[r].end;
  }
};

// sum[i][j] = rows 4 ty + i of a . rows tx + 16 j of b, over the whole head.
template <bool kVector, typename RowsOfA, typename RowsOfB>
__device__ inline void Products(float (*left)[kPitch], float (*right)[kPitch], int64_t head_dim,
                                RowsOfA a, RowsOfB b, int ty, int tx, float (&sum)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  }
  for (int64_t d = 0; d < head_dim; d += kTile) {
    __syncthreads();  // waits for the readers of what was there
    LoadTile<kVector>(left, d, head_dim, a);
    LoadTile<kVector>(right, d, head_dim, b);
    __syncthreads();  // waits for both tiles
    AddScores(left, right, ty, tx, sum);
  }
}

// sum[c] += `weights` [64, 64] times columns [slice + 64 c, +64) of the rows.
template <bool kVector, int kChunks, typename Rows>
__device__ inline void AddProducts(const float (&weights)[4][4], float (*left)[kPitch],
                                   float (*right)[kPitch], int64_t slice, int64_t head_dim,
                                   Rows rows, int ty, int tx, float (&sum)[kChunks][4][4]) {
  __syncthreads();  // waits for the readers of `left`
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) left[ty * 4 + i][tx + j * 16] = weights[i][j];
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    __syncthreads();  // waits for the weights, and the readers of `right`
    LoadTile<kVector>(right, slice + c * kTile, head_dim, rows);
    __syncthreads();  // waits for the rows
    AddValues(left, right, ty, tx, sum[c]);
  }
}

// out (rows 4 ty + i below `count`, columns slice + 64 c + 4 tx + j) += sum.
template <int kChunks>
__device__ inline void AddTo(float* out, int64_t stride, int64_t count, int64_t slice,
                             int64_t head_dim, int ty, int tx, const float (&sum)[kChunks][4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = ty * 4 + i;
    if (r >= count) continue;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t d = slice + c * kTile + tx * 4 + j;
        if (d < head_dim) out[r * stride + d] += sum[c][i][j];
      }
    }
  }
}

// Rows of [.., heads, head_dim] from `first` on; null behind `count`.
template <typename E>
struct HeadRows {
  const E* data;
  int64_t stride, count;
  __device__ HeadRows(const void* x, int64_t stride, int64_t first, int64_t head, int64_t head_dim,
                      int64_t count)
      : data(static_cast<const E*>(x) + first * stride + head * head_dim),
        stride(stride),
        count(count) {}
  __device__ const E* operator()(int r) const { return r < count ? data + r * stride : nullptr; }
};

// 64 queries of one head.
template <typename E, int kChunks, bool kVector>
__global__ void __launch_bounds__(kTileThreads) QueryGradientKernel(Args args) {
  __shared__ __align__(16) float left[kTile][kPitch], right[kTile][kPitch];
  __shared__ QueryRows rows;
  const AttentionArgs<float>& a = args.forward;
  const int64_t tiles = gridDim.x / a.heads, head = blockIdx.x % a.heads;
  const int64_t first_query = a.q_begin + (tiles - 1 - blockIdx.x / a.heads) * kTile;
  const int64_t queries = min(int64_t{kTile}, a.q_begin + a.q_count - first_query);
  const int64_t kv_head = a.kv_index[head], k_end = a.k_begin + a.k_count;
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  rows.Load(args, head, first_query, queries, a.k_begin, k_end);
  __syncthreads();  // waits for the ranges
  int64_t begin = k_end, end = a.k_begin;
  for (int r = 0; r < queries; ++r) {
    if (rows.seen[r].begin >= rows.seen[r].end) continue;
    begin = min(begin, rows.seen[r].begin);
    end = max(end, rows.seen[r].end);
  }
  const HeadRows<float> q(a.q, a.q_stride, first_query, head, a.head_dim, queries);
  const HeadRows<float> d_o(args.d_o, args.do_stride, first_query, head, a.head_dim, queries);
  for (int64_t slice = 0; slice < a.head_dim; slice += kTile * kChunks) {
    float dq[kChunks][4][4] = {};
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t keys = min(int64_t{kTile}, end - first);
      const HeadRows<E> k(a.k, a.k_stride, first, kv_head, a.head_dim, keys);
      const HeadRows<E> v(a.v, a.v_stride, first, kv_head, a.head_dim, keys);
      float score[4][4], dp[4][4];
      Products<kVector>(left, right, a.head_dim, q, k, ty, tx, score);
      Products<kVector>(left, right, a.head_dim, d_o, v, ty, tx, dp);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = ty * 4 + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool visible = rows.Sees(r, first + tx + j * 16);
          const float p = visible ? expf(score[i][j] * float(a.scale) - rows.lse[r]) : 0.0f;
          dp[i][j] = visible ? p * (dp[i][j] - rows.delta[r]) * float(a.scale) : 0.0f;
        }
      }
      AddProducts<kVector>(dp, left, right, slice, a.head_dim, k, ty, tx, dq);
    }
    AddTo(args.dq + first_query * args.dq_stride + head * a.head_dim, args.dq_stride, queries,
          slice, a.head_dim, ty, tx, dq);
  }
}

// 64 keys of one KV head, against all queries of its heads.
template <typename E, int kChunks, bool kVector>
__global__ void __launch_bounds__(kTileThreads) KeyGradientKernel(Args args) {
  __shared__ __align__(16) float left[kTile][kPitch], right[kTile][kPitch];
  __shared__ QueryRows rows;
  const AttentionArgs<float>& a = args.forward;
  const int64_t kv_head = blockIdx.x % args.kv_heads;
  const int64_t first = a.k_begin + blockIdx.x / args.kv_heads * kTile;
  const int64_t keys = min(int64_t{kTile}, a.k_begin + a.k_count - first);
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  const HeadRows<E> k(a.k, a.k_stride, first, kv_head, a.head_dim, keys);
  const HeadRows<E> v(a.v, a.v_stride, first, kv_head, a.head_dim, keys);
  for (int64_t slice = 0; slice < a.head_dim; slice += kTile * kChunks) {
    float dk[kChunks][4][4] = {}, dv[kChunks][4][4] = {};
    for (int64_t head = 0; head < a.heads; ++head) {
      if (a.kv_index[head] != kv_head) continue;
      for (int64_t tile = 0; tile < a.q_count; tile += kTile) {
        const int64_t queries = min(int64_t{kTile}, a.q_count - tile);
        __syncthreads();  // waits for the readers of `rows`
        rows.Load(args, head, a.q_begin + tile, queries, first, first + keys);
        const bool sees =
            threadIdx.x < kTile && rows.seen[threadIdx.x].begin < rows.seen[threadIdx.x].end;
        if (!__syncthreads_or(sees)) continue;
        const HeadRows<float> q(a.q, a.q_stride, a.q_begin + tile, head, a.head_dim, queries);
        const HeadRows<float> d_o(args.d_o, args.do_stride, a.q_begin + tile, head, a.head_dim,
                                  queries);
        float p[4][4], ds[4][4];  // transposed: keys 4 ty + i, queries tx + 16 j
        Products<kVector>(left, right, a.head_dim, k, q, ty, tx, p);
        Products<kVector>(left, right, a.head_dim, v, d_o, ty, tx, ds);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int r = tx + j * 16;
            const bool visible = rows.Sees(r, first + ty * 4 + i);
            p[i][j] = visible ? expf(p[i][j] * float(a.scale) - rows.lse[r]) : 0.0f;
            ds[i][j] = visible ? p[i][j] * (ds[i][j] - rows.delta[r]) * float(a.scale) : 0.0f;
          }
        }
        AddProducts<kVector>(p, left, right, slice, a.head_dim, d_o, ty, tx, dv);
        AddProducts<kVector>(ds, left, right, slice, a.head_dim, q, ty, tx, dk);
      }
    }
    const int64_t head_begin = kv_head * a.head_dim;
    AddTo(args.dk + first * args.dk_stride + head_begin, args.dk_stride, keys, slice, a.head_dim,
          ty, tx, dk);
    AddTo(args.dv + first * args.dv_stride + head_begin, args.dv_stride, keys, slice, a.head_dim,
          ty, tx, dv);
  }
}

template <typename E, bool kVector>
void Backward(CudaStream s, const Args& args) {
  const AttentionArgs<float>& a = args.forward;
  const unsigned queries = unsigned(CeilDiv(a.q_count, kTile) * a.heads);
  const unsigned keys = unsigned(CeilDiv(a.k_count, kTile) * args.kv_heads);
  if (a.head_dim <= kTile) {
    QueryGradientKernel<E, 1, kVector><<<queries, kTileThreads, 0, s>>>(args);
    KeyGradientKernel<E, 1, kVector><<<keys, kTileThreads, 0, s>>>(args);
  } else {
    QueryGradientKernel<E, 2, kVector><<<queries, kTileThreads, 0, s>>>(args);
    KeyGradientKernel<E, 2, kVector><<<keys, kTileThreads, 0, s>>>(args);
  }
}

// A warp per (token, head).
template <typename E>
__global__ void DeltaKernel(const float* o, int64_t o_stride, const E* d_o, int64_t do_stride,
                            int64_t t, int64_t heads, int64_t head_dim, float* delta,
                            int64_t delta_stride) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= t * heads) return;
  const int64_t token = row / heads, head = row % heads;
  const float* x = o + token * o_stride + head * head_dim;
  const E* dx = d_o + token * do_stride + head * head_dim;
  float sum = 0;
  for (int64_t d = threadIdx.x % kWarp; d < head_dim; d += kWarp) sum += x[d] * Widen(dx[d]);
  sum = WarpSum(sum);
  if (threadIdx.x % kWarp == 0) delta[token * delta_stride + head] = sum;
}

}  // namespace

void AttendTileBackward(CudaStream s, const AttentionBackwardArgs<float>& args) {
  const AttentionArgs<float>& a = args.forward;
  if (a.q_count == 0 || a.k_count == 0 || a.heads == 0 || args.kv_heads == 0) return;
  const bool fours = args.do_stride % 4 == 0 && reinterpret_cast<uintptr_t>(args.d_o) % 16 == 0;
  WithKvType(a, [&]<typename E>(E, auto vector) {
    if constexpr (decltype(vector)::value) {
      fours ? Backward<E, true>(s, args) : Backward<E, false>(s, args);
    } else {
      Backward<E, false>(s, args);
    }
  });
}

void AttentionDelta(CudaStream s, const float* o, int64_t o_stride, DType type, const void* d_o,
                    int64_t do_stride, int64_t t, int64_t heads, int64_t head_dim, float* delta,
                    int64_t delta_stride) {
  constexpr int kWarps = 8;
  if (t * heads == 0) return;
  WithActivation(type, [&]<typename E>(E) {
    DeltaKernel<<<unsigned(CeilDiv(t * heads, kWarps)), kWarps * kWarp, 0, s>>>(
        o, o_stride, static_cast<const E*>(d_o), do_stride, t, heads, head_dim, delta,
        delta_stride);
  });
}

}  // namespace toroid
