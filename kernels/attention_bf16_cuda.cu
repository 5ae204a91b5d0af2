// Brings a tile of attention.h to the kernels of attention_hopper.h: operands in bf16, the list of
// tiles and the mask made on the device. Long tiles are cut into chunks of queries that fit into
// the workspace.
#include "kernels/attention_bf16.h"
#include "kernels/attention_device.cuh"
#include "kernels/attention_hopper.h"
#include "kernels/attention_hopper_backward.h"

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

// out [rows, cols] = x in bf16; eight elements a thread. cols is a multiple of 8.
__global__ void __launch_bounds__(kThreads)
    RoundKernel(const float* x, int64_t stride, int64_t rows, int64_t cols, __nv_bfloat16* out) {
  const int64_t eights = cols / 8, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * eights; i += step) {
    const int64_t row = i / eights, col = (i - row * eights) * 8;
    const float4 a = *reinterpret_cast<const float4*>(x + row * stride + col);
    const float4 b = *reinterpret_cast<const float4*>(x + row * stride + col + 4);
    alignas(16) __nv_bfloat162 rounded[4] = {
        __floats2bfloat162_rn(a.x, a.y), __floats2bfloat162_rn(a.z, a.w),
        __floats2bfloat162_rn(b.x, b.y), __floats2bfloat162_rn(b.z, b.w)};
    *reinterpret_cast<uint4*>(out + row * cols + col) = *reinterpret_cast<const uint4*>(rounded);
  }
}

void Round(CudaStream s, const float* x, int64_t stride, int64_t rows, int64_t cols,
           __nv_bfloat16* out) {
  const int64_t blocks = CeilDiv(rows * cols / 8, kThreads);
  RoundKernel<<<unsigned(blocks < 1 << 16 ? blocks : 1 << 16), kThreads, 0, s>>>(x, stride, rows,
                                                                                 cols, out);
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
// queries that see any of them.
__global__ void __launch_bounds__(kThreads)
    KeyTilesKernel(AttentionArgs<float> a, int64_t begin, int64_t count, int keys,
                   int32_t* first_queries, AttentionTile* tiles) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= a.k_count) return;
  const int64_t key = a.k_begin + j;
  const int64_t first =
      a.causal ? FirstFrom(a.q_positions, begin, begin + count, a.k_positions[key]) - begin : 0;
  first_queries[key] = int32_t(first);
  if (j % keys != 0) return;
  AttentionTile tile;
  tile.q_begin = int32_t(first), tile.q_count = int32_t(count - first);
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

bool Takes(const AttentionArgs<float>& a) {
  return a.kv_type == DType::kBF16 && a.page_table == nullptr && a.length == nullptr &&
         a.window == 0 && a.q_count >= kFewestBf16Queries && a.k_count > 0 && a.scale > 0 &&
         a.k_begin + a.k_count < kAllVisible && On16Bytes(a.q, a.q_stride * 4) &&
         On16Bytes(a.k, a.k_stride * 2) && On16Bytes(a.v, a.v_stride * 2);
}

// Queries of a chunk; 0 if the workspace is too small.
int64_t ChunkOf(const AttentionArgs<float>& a, int64_t fixed_bytes, int64_t row_bytes,
                const AttentionWorkspace& workspace) {
  constexpr int64_t kMostParts = 5;
  const int64_t rows = (workspace.bytes - fixed_bytes - kMostParts * kAlignment) / row_bytes;
  return rows < a.q_count ? rows / 256 * 256 : a.q_count;
}

}  // namespace

bool AttendTileBf16(CudaStream s, const AttentionArgs<float>& a, int64_t kv_heads,
                    const AttentionWorkspace& workspace) {
  const int rows = AttentionHopperRows(int(a.head_dim));
  if (rows == 0 || !Takes(a) || !On16Bytes(a.o, a.o_stride * 4)) return false;
  const int64_t cols = a.heads * a.head_dim;
  const int64_t tile_bytes = CeilDiv(a.q_count, rows) * int64_t{sizeof(AttentionTile)};
  const int64_t chunk = ChunkOf(a, tile_bytes, 2 * cols + 4, workspace);
  if (chunk <= 0) return false;
  for (int64_t begin = a.q_begin; begin < a.q_begin + a.q_count; begin += chunk) {
    const int64_t left = a.q_begin + a.q_count - begin, count = left < chunk ? left : chunk;
    Parts parts(workspace);
    __nv_bfloat16* q = parts.Take<__nv_bfloat16>(count * cols);
    int32_t* limits = parts.Take<int32_t>(count);
    AttentionTile* tiles = parts.Take<AttentionTile>(CeilDiv(count, rows));
    Round(s, a.q + begin * a.q_stride, a.q_stride, count, cols, q);
    QueryTilesKernel<<<unsigned(CeilDiv(count, kThreads)), kThreads, 0, s>>>(a, begin, count, rows,
                                                                             limits, tiles);
    AttentionHopperArgs args;
    args.q = q, args.k = a.k, args.v = a.v;
    args.q_tokens = count, args.k_tokens = a.k_begin + a.k_count;
    args.q_stride = cols, args.k_stride = a.k_stride, args.v_stride = a.v_stride;
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
                            const AttentionWorkspace& workspace) {
  const AttentionArgs<float>& a = b.forward;
  const int keys = AttentionHopperBackwardKeys(int(a.head_dim));
  if (keys == 0 || !Takes(a) || !On16Bytes(b.d_o, b.do_stride * 4) ||
      !On16Bytes(b.dq, b.dq_stride * 4) || !On16Bytes(b.dk, b.dk_stride * 4) ||
      !On16Bytes(b.dv, b.dv_stride * 4)) {
    return false;
  }
  const int64_t cols = a.heads * a.head_dim, k_end = a.k_begin + a.k_count;
  const int64_t tile_count = CeilDiv(a.k_count, keys);
  const int64_t fixed = 4 * k_end + tile_count * int64_t{sizeof(AttentionTile)};
  const int64_t chunk = ChunkOf(a, fixed, 4 * cols + 8 * a.heads, workspace);
  if (chunk <= 0) return false;
  for (int64_t begin = a.q_begin; begin < a.q_begin + a.q_count; begin += chunk) {
    const int64_t left = a.q_begin + a.q_count - begin, count = left < chunk ? left : chunk;
    Parts parts(workspace);
    __nv_bfloat16* q = parts.Take<__nv_bfloat16>(count * cols);
    __nv_bfloat16* d_o = parts.Take<__nv_bfloat16>(count * cols);
    float2* rows = parts.Take<float2>(count * a.heads);
    int32_t* first_queries = parts.Take<int32_t>(k_end);
    AttentionTile* tiles = parts.Take<AttentionTile>(tile_count);
    Round(s, a.q + begin * a.q_stride, a.q_stride, count, cols, q);
    Round(s, b.d_o + begin * b.do_stride, b.do_stride, count, cols, d_o);
    RowsKernel<<<unsigned(CeilDiv(count * a.heads, kThreads)), kThreads, 0, s>>>(
        a.lse + begin * a.lse_stride, a.lse_stride, b.delta + begin * b.delta_stride,
        b.delta_stride, count, a.heads, rows);
    KeyTilesKernel<<<unsigned(CeilDiv(a.k_count, kThreads)), kThreads, 0, s>>>(
        a, begin, count, keys, first_queries, tiles);
    AttentionHopperBackwardArgs args;
    args.q = q, args.d_o = d_o, args.k = a.k, args.v = a.v;
    args.q_tokens = count, args.k_tokens = k_end;
    args.q_stride = args.d_o_stride = cols;
    args.k_stride = a.k_stride, args.v_stride = a.v_stride;
    args.kv_index = a.kv_index, args.heads = int(a.heads), args.kv_heads = int(b.kv_heads);
    args.head_dim = int(a.head_dim), args.scale = float(a.scale);
    args.tiles = tiles, args.tile_count = int(tile_count), args.first_queries = first_queries;
    args.rows = reinterpret_cast<const float*>(rows);
    args.dq = b.dq + begin * b.dq_stride, args.dq_stride = b.dq_stride;
    args.dk = b.dk, args.dk_stride = b.dk_stride;
    args.dv = b.dv, args.dv_stride = b.dv_stride;
    args.counters = workspace.counters;
    if (AttendTilesBackwardHopper(s, args) != cudaSuccess) return false;
  }
  return true;
}

}  // namespace toroid
