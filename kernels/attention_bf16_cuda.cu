// Brings a tile of attention.h to the kernels of attention_hopper.h: operands in bf16, the list of
// tiles and the mask made on the device. Long tiles are cut into chunks of queries that fit into
// the workspace.
#include "kernels/attention_bf16.h"
#include "kernels/attention_device.cuh"
#include "kernels/attention_hopper.h"
#include "kernels/attention_hopper_backward.h"
#include "kernels/elementwise.h"

namespace toroid {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kAlignment = 256;  // bytes, of each part of the workspace

int64_t Aligned(int64_t bytes) { return CeilDiv(bytes, kAlignment) * kAlignment; }

// Parts of the workspace, one after the other.
class Parts {
 public:
  explicit Parts(const AttentionWorkspace& workspace) : next_(static_cast<char*>(workspace.data)) {}
  template <typename T>
  T* Take(int64_t count) {
    char* at = next_;
    next_ += Aligned(count * int64_t{sizeof(T)});
    return reinterpret_cast<T*>(at);
  }

 private:
  char* next_;
};

// Rows of a matrix in bf16, where they lie or rounded into memory of the workspace.
struct Narrow {
  const __nv_bfloat16* data;
  int64_t stride;
};

Narrow Narrowed(CudaStream s, const float* x, const void* narrow, int64_t stride, int64_t begin,
                int64_t count, int64_t cols, Parts& parts) {
  if (narrow != nullptr) {
    return {static_cast<const __nv_bfloat16*>(narrow) + begin * stride, stride};
  }
  __nv_bfloat16* room = parts.Take<__nv_bfloat16>(count * cols);
  CopyRows(s, DType::kF32, x + begin * stride, stride, DType::kBF16, room, cols, count, cols);
  return {room, cols};
}

// Queries [begin, begin + count) of the tile: how many keys each sees, and their tiles of `rows`
// queries, the last first. Queries count from `begin`.
__global__ void __launch_bounds__(kThreads)
    QueryTilesKernel(AttentionArgs<float> a, int64_t begin, int64_t count, int rows,
                     int32_t* limits, AttentionTile* tiles) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  limits[i] = int32_t(VisibleKeys(a, begin + i, a.k_begin, a.k_begin + a.k_count).end - a.k_begin);
  if (i % rows != 0) return;
  AttentionTile tile;
  tile.q_begin = int32_t(i), tile.q_count = int32_t(min(int64_t{rows}, count - i));
  tile.k_begin = int32_t(a.k_begin), tile.k_count = int32_t(a.k_count);
  tiles[(count + rows - 1) / rows - 1 - i / rows] = tile;
}

// First query in [begin, end) whose position is >= bound.
__device__ int64_t FirstFrom(const int32_t* positions, int64_t begin, int64_t end, int64_t bound) {
  return UpperBound(positions, begin, end, bound - 1);
}

// The same queries, by keys: the first that sees each key, and tiles of `keys` keys with the
// queries that see any of them, from a multiple of `queries` on.
__global__ void __launch_bounds__(kThreads)
    KeyTilesKernel(AttentionArgs<float> a, int64_t begin, int64_t count, int keys, int queries,
                   int32_t* first_queries, AttentionTile* tiles) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= a.k_count) return;
  const int64_t key = a.k_begin + j;
  const int64_t first =
      a.causal ? FirstFrom(a.q_positions, begin, begin + count, a.k_positions[key]) - begin : 0;
  first_queries[key] = int32_t(first);
  if (j % keys != 0) return;
  AttentionTile tile;
  const int64_t from = first == count ? count : first / queries * queries;
  tile.q_begin = int32_t(from), tile.q_count = int32_t(count - from);
  tile.k_begin = int32_t(key), tile.k_count = int32_t(min(int64_t{keys}, a.k_count - j));
  tiles[j / keys] = tile;
}

// rows [heads, count, 2] of attention_hopper_backward.h: lse in base 2, delta.
__global__ void __launch_bounds__(kThreads)
    RowsKernel(const float* lse, int64_t lse_stride, const float* delta, int64_t delta_stride,
               int64_t count, int64_t heads, float2* rows) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count * heads) return;
  const int64_t token = i / heads, head = i % heads;
  const float seen = lse[token * lse_stride + head];
  rows[head * count + token] =
      make_float2(seen == -INFINITY ? INFINITY : seen * 1.44269504088896341f,
                  delta[token * delta_stride + head]);
}

bool On16Bytes(const void* x, int64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(x) | uintptr_t(row_bytes)) % 16 == 0;
}

bool Takes(const AttentionArgs<float>& a, const void* queries) {
  const bool lies =
      queries != nullptr ? On16Bytes(queries, a.q_stride * 2) : On16Bytes(a.q, a.q_stride * 4);
  return a.kv_type == DType::kBF16 && a.page_table == nullptr && a.length == nullptr &&
         a.window == 0 && a.q_count >= kFewestBf16Queries && a.k_count > 0 && a.scale > 0 &&
         a.k_begin + a.k_count < kAllVisible && lies && On16Bytes(a.k, a.k_stride * 2) &&
         On16Bytes(a.v, a.v_stride * 2);
}

// Queries of a chunk; 0 if the workspace is too small.
int64_t ChunkOf(const AttentionArgs<float>& a, int64_t fixed_bytes, int64_t row_bytes,
                const AttentionWorkspace& workspace) {
  constexpr int64_t kMostParts = 6;
  const int64_t rows = (workspace.bytes - fixed_bytes - kMostParts * kAlignment) / row_bytes;
  return rows < a.q_count ? rows / 256 * 256 : a.q_count;
}

}  // namespace

bool AttendTileBf16(CudaStream s, const AttentionArgs<float>& a, const void* queries,
                    int64_t kv_heads, const AttentionWorkspace& workspace) {
  const int rows = AttentionHopperRows(int(a.head_dim));
  if (rows == 0 || !Takes(a, queries) || !On16Bytes(a.o, a.o_stride * 4)) return false;
  const int64_t cols = a.heads * a.head_dim;
  const int64_t tile_bytes = CeilDiv(a.q_count, rows) * int64_t{sizeof(AttentionTile)};
  const int64_t narrowed = queries == nullptr ? 2 * cols : 0;  // bytes of a row
  const int64_t chunk = ChunkOf(a, tile_bytes, narrowed + 4, workspace);
  if (chunk <= 0) return false;
  for (int64_t begin = a.q_begin; begin < a.q_begin + a.q_count; begin += chunk) {
    const int64_t left = a.q_begin + a.q_count - begin, count = left < chunk ? left : chunk;
    Parts parts(workspace);
    const Narrow q = Narrowed(s, a.q, queries, a.q_stride, begin, count, cols, parts);
    int32_t* limits = parts.Take<int32_t>(count);
    AttentionTile* tiles = parts.Take<AttentionTile>(CeilDiv(count, rows));
    QueryTilesKernel<<<unsigned(CeilDiv(count, kThreads)), kThreads, 0, s>>>(a, begin, count, rows,
                                                                             limits, tiles);
    AttentionHopperArgs args;
    args.q = q.data, args.k = a.k, args.v = a.v;
    args.q_tokens = count, args.k_tokens = a.k_begin + a.k_count;
    args.q_stride = q.stride, args.k_stride = a.k_stride, args.v_stride = a.v_stride;
    args.kv_index = a.kv_index, args.heads = int(a.heads), args.kv_heads = int(kv_heads);
    args.head_dim = int(a.head_dim), args.scale = float(a.scale);
    args.tiles = tiles, args.tile_count = int(CeilDiv(count, rows)), args.limits = limits;
    args.o = a.o + begin * a.o_stride, args.o_stride = a.o_stride;
    args.lse = a.lse + begin * a.lse_stride, args.lse_stride = a.lse_stride;
    args.fresh = false, args.counters = workspace.counters;
    if (AttendTilesHopper(s, args) != cudaSuccess) return false;
  }
  return true;
}

bool AttendTileBackwardBf16(CudaStream s, const AttentionBackwardArgs<float>& b,
                            const void* queries, const void* gradients, SumOrder order,
                            const AttentionWorkspace& workspace) {
  const AttentionArgs<float>& a = b.forward;
  const int keys = AttentionHopperBackwardKeys(int(a.head_dim));
  const bool lies = gradients != nullptr ? On16Bytes(gradients, b.do_stride * 2)
                                         : On16Bytes(b.d_o, b.do_stride * 4);
  if (keys == 0 || !Takes(a, queries) || !lies || !On16Bytes(b.dq, b.dq_stride * 4) ||
      !On16Bytes(b.dk, b.dk_stride * 4) || !On16Bytes(b.dv, b.dv_stride * 4)) {
    return false;
  }
  const int64_t cols = a.heads * a.head_dim, k_end = a.k_begin + a.k_count;
  const int64_t tile_count = CeilDiv(a.k_count, keys);
  const bool ordered = order == SumOrder::kFixed;
  const auto turns_of = [&](int64_t q_tokens) {
    return !ordered ? 0
                    : AttentionHopperBackwardTurns(int(a.head_dim), q_tokens, int(a.heads),
                                                   int(tile_count), int(b.kv_heads));
  };
  const int64_t fixed = 4 * (k_end + turns_of(0)) + tile_count * int64_t{sizeof(AttentionTile)};
  const int64_t narrowed = (queries == nullptr ? 2 * cols : 0) +  // bytes of a row
                           (gradients == nullptr ? 2 * cols : 0);
  const int64_t turn_bytes = ordered ? a.heads : 0;  // of a row, at most
  const int64_t chunk = ChunkOf(a, fixed, narrowed + 8 * a.heads + turn_bytes, workspace);
  if (chunk <= 0) return false;
  for (int64_t begin = a.q_begin; begin < a.q_begin + a.q_count; begin += chunk) {
    const int64_t left = a.q_begin + a.q_count - begin, count = left < chunk ? left : chunk;
    Parts parts(workspace);
    const Narrow q = Narrowed(s, a.q, queries, a.q_stride, begin, count, cols, parts);
    const Narrow d_o = Narrowed(s, b.d_o, gradients, b.do_stride, begin, count, cols, parts);
    float2* rows = parts.Take<float2>(count * a.heads);
    int32_t* first_queries = parts.Take<int32_t>(k_end);
    AttentionTile* tiles = parts.Take<AttentionTile>(tile_count);
    int32_t* turns = parts.Take<int32_t>(turns_of(count));
    RowsKernel<<<unsigned(CeilDiv(count * a.heads, kThreads)), kThreads, 0, s>>>(
        a.lse + begin * a.lse_stride, a.lse_stride, b.delta + begin * b.delta_stride,
        b.delta_stride, count, a.heads, rows);
    KeyTilesKernel<<<unsigned(CeilDiv(a.k_count, kThreads)), kThreads, 0, s>>>(
        a, begin, count, keys, AttentionHopperBackwardQueries(int(a.head_dim)), first_queries,
        tiles);
    AttentionHopperBackwardArgs args;
    args.q = q.data, args.d_o = d_o.data, args.k = a.k, args.v = a.v;
    args.q_tokens = count, args.k_tokens = k_end;
    args.q_stride = q.stride, args.d_o_stride = d_o.stride;
    args.k_stride = a.k_stride, args.v_stride = a.v_stride;
    args.kv_index = a.kv_index, args.heads = int(a.heads), args.kv_heads = int(b.kv_heads);
    args.head_dim = int(a.head_dim), args.scale = float(a.scale);
    args.tiles = tiles, args.tile_count = int(tile_count), args.first_queries = first_queries;
    args.rows = reinterpret_cast<const float*>(rows);
    args.dq = b.dq + begin * b.dq_stride, args.dq_stride = b.dq_stride;
    args.dk = b.dk, args.dk_stride = b.dk_stride;
    args.dv = b.dv, args.dv_stride = b.dv_stride;
    args.counters = workspace.counters, args.turns = ordered ? turns : nullptr;
    if (AttendTilesBackwardHopper(s, args) != cudaSuccess) return false;
  }
  return true;
}

}  // namespace toroid
