// Plain CUDA attention for every shape: any head dimension, f32 or bf16 keys and values, pages,
// positions, windows, the float32 carry. Tiles of 64 queries by 64 keys; few queries go elsewhere.
#include "kernels/attention_tile.cuh"

namespace toroid {

namespace {

// 64 queries of one head. Thread (ty, tx) holds queries 4 ty .. 4 ty + 3; the 16 threads of one ty
// are half a warp and share the rows' maxima and sums. A head of more than 64 kChunks elements is
// written in slices of so many, each of which makes the scores anew. Longest rows first: later
// queries see more keys.
template <typename E, int kChunks, bool kVector>
__global__ void __launch_bounds__(kTileThreads) TileKernel(AttentionArgs<float> a) {
  __shared__ __align__(16) float left[kTile][kPitch], right[kTile][kPitch];  // Q, then P; K, then V
  __shared__ int64_t physical[kTile];
  __shared__ KeyRange seen[kTile];
  const int64_t tiles = gridDim.x / a.heads, head = blockIdx.x % a.heads;
  const int64_t first_query = a.q_begin + (tiles - 1 - blockIdx.x / a.heads) * kTile;
  const int64_t queries = min(int64_t{kTile}, a.q_begin + a.q_count - first_query);
  const int thread = threadIdx.x, ty = thread / 16, tx = thread % 16;
  const int64_t kv_head = a.kv_index[head];
  if (thread < kTile) {
    seen[thread] = {0, 0};
    if (thread < queries) {
      seen[thread] = VisibleKeys(a, first_query + thread, a.k_begin, a.k_begin + a.k_count);
    }
  }
  __syncthreads();  // waits for the ranges
  int64_t begin = a.k_begin + a.k_count, end = 0;
  for (int r = 0; r < queries; ++r) {
    if (seen[r].begin >= seen[r].end) continue;
    begin = min(begin, seen[r].begin);
    end = max(end, seen[r].end);
  }
  if (begin >= end) return;  // nobody sees a key: the carry stays
  begin = a.k_begin + (begin - a.k_begin) / kTile * kTile;

  const auto query = [&](int r) -> const float* {
    if (r >= queries) return nullptr;
    return a.q + (first_query + r) * a.q_stride + head * a.head_dim;
  };
  const auto key_of = [&](const void* data, int64_t stride) {
    return [&, data, stride](int r) -> const E* {
      if (physical[r] < 0) return nullptr;
      return static_cast<const E*>(data) + physical[r] * stride + kv_head * a.head_dim;
    };
  };
  float max[4], sum[4], lse[4];
  for (int64_t slice = 0; slice < a.head_dim; slice += kTile * kChunks) {
    float o[kChunks][4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = ty * 4 + i;
      const bool valid = r < queries;
      const int64_t row = first_query + (valid ? r : 0);
      max[i] = valid ? a.lse[row * a.lse_stride + head] : -INFINITY;
      sum[i] = max[i] > -INFINITY ? 1.0f : 0.0f;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t d = slice + c * kTile + tx * 4 + j;
          const bool carried = max[i] > -INFINITY && d < a.head_dim;
          o[c][i][j] = carried ? a.o[row * a.o_stride + head * a.head_dim + d] : 0.0f;
        }
      }
    }
    for (int64_t first = begin; first < end; first += kTile) {
      __syncthreads();  // waits for the last tile's readers of `right` and `physical`
      if (thread < kTile) {
        physical[thread] = first + thread < end ? PhysicalRow(a, first + thread) : -1;
      }
      float score[4][4] = {};
      for (int64_t d = 0; d < a.head_dim; d += kTile) {
        __syncthreads();  // waits for `physical`, and the readers of the elements before
        LoadTile<kVector>(left, d, a.head_dim, query);
        LoadTile<kVector>(right, d, a.head_dim, key_of(a.k, a.k_stride));
        __syncthreads();  // waits for both tiles
        AddScores(left, right, ty, tx, score);
      }
      __syncthreads();  // waits for the readers of Q, which P replaces
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const KeyRange range = seen[ty * 4 + i];
        float highest = -INFINITY;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t key = first + tx + j * 16;
          const bool visible = key >= range.begin && key < range.end;
          score[i][j] = visible ? score[i][j] * float(a.scale) : -INFINITY;
          highest = fmaxf(highest, score[i][j]);
        }
        highest = fmaxf(max[i], SixteenMax(highest));
        const float base = highest > -INFINITY ? highest : 0.0f;  // no -inf - -inf
        const float kept = expf(max[i] - base);
        float added = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float weight = expf(score[i][j] - base);
          left[ty * 4 + i][tx + j * 16] = weight;
          added += weight;
        }
        max[i] = highest;
        sum[i] = sum[i] * kept + SixteenSum(added);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) o[c][i][j] *= kept;
        }
      }
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        __syncthreads();  // waits for P, and the readers of `right`
        LoadTile<kVector>(right, slice + c * kTile, a.head_dim, key_of(a.v, a.v_stride));
        __syncthreads();  // waits for V
        AddValues(left, right, ty, tx, o[c]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = ty * 4 + i;
      lse[i] = sum[i] > 0 ? max[i] + logf(sum[i]) : -INFINITY;
      if (seen[r].begin >= seen[r].end) continue;
      float* out = a.o + (first_query + r) * a.o_stride + head * a.head_dim;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t d = slice + c * kTile + tx * 4 + j;
          if (d < a.head_dim) out[d] = o[c][i][j] / sum[i];
        }
      }
    }
  }
  // Only now: every slice continues the same carry. The half warp that reads a row's lse is the one
  // that writes it.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = ty * 4 + i;
    if (tx == 0 && seen[r].begin < seen[r].end) {
      a.lse[(first_query + r) * a.lse_stride + head] = lse[i];
    }
  }
}

template <typename E, bool kVector>
void AttendWide(CudaStream s, const AttentionArgs<float>& a) {
  const unsigned grid = unsigned(CeilDiv(a.q_count, kTile) * a.heads);
  if (a.head_dim <= kTile) {
    TileKernel<E, 1, kVector><<<grid, kTileThreads, 0, s>>>(a);
  } else if (a.head_dim <= 2 * kTile) {
    TileKernel<E, 2, kVector><<<grid, kTileThreads, 0, s>>>(a);
  } else {
    TileKernel<E, 4, kVector><<<grid, kTileThreads, 0, s>>>(a);
  }
}

}  // namespace

void AttendTile(CudaStream s, const AttentionArgs<float>& args, void* workspace,
                int64_t workspace_bytes, int32_t* counters, bool overlap) {
  if (args.q_count == 0 || args.k_count == 0 || args.heads == 0) return;
  if (AttendNarrow(s, args, workspace, workspace_bytes, counters, overlap)) return;
  WithKvType(args,
             [&]<typename E>(E, auto vector) { AttendWide<E, decltype(vector)::value>(s, args); });
}

}  // namespace toroid
