// Launchers of the Hopper attention backward; the kernel itself: hopper/attention_backward.cuh.
#include <cuda.h>

#include <algorithm>

#include "kernels/attention_hopper_backward.h"
#include "kernels/hopper/attention_backward.cuh"
#include "kernels/hopper/tensor_map.h"

namespace toroid {
namespace hopper {
namespace {

using Backward64 = BackwardCut<64, Divided::kKeys, 4, 200, 2>;
using Backward128 = BackwardCut<128, Divided::kKeysAndQueries, 2, 240, 2>;
using Backward256 = BackwardCut<256, Divided::kGradients, 2, 208, 1>;

// What `of` says of the cut of a head dim; 0 if there is none.
template <typename Of>
auto OfCut(int head_dim, const Of& of) -> decltype(of(Backward64())) {
  switch (head_dim) {
    case 64:
      return of(Backward64());
    case 128:
      return of(Backward128());
    case 256:
      return of(Backward256());
    default:
      return {};
  }
}

int KeysOf(int head_dim) {
  return OfCut(head_dim, [](auto cut) { return decltype(cut)::kKeys; });
}

constexpr int kRowsThreads = 256;

// One warp per (token, head).
__global__ void __launch_bounds__(kRowsThreads)
    RowsKernel(const float* o, int64_t o_stride, const float* lse, int64_t lse_stride,
               const __nv_bfloat16* d_o, int64_t d_o_stride, int64_t tokens, int heads,
               int head_dim, float2* rows) {
  const int64_t index =
      (int64_t{blockIdx.x} * kRowsThreads + static_cast<int>(threadIdx.x)) / kWarpThreads;
  if (index >= tokens * heads) return;
  const int64_t token = index / heads;
  const int head = static_cast<int>(index % heads), lane = threadIdx.x % kWarpThreads;
  const float* o_row = o + token * o_stride + head * head_dim;
  const __nv_bfloat16* d_o_row = d_o + token * d_o_stride + head * head_dim;
  float delta = 0;
  for (int i = 2 * lane; i < head_dim; i += 2 * kWarpThreads) {
    const float2 a = *reinterpret_cast<const float2*>(o_row + i);
    const float2 b = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(d_o_row + i));
    delta += a.x * b.x + a.y * b.y;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    delta += __shfl_xor_sync(~0u, delta, distance);
  }
  if (lane == 0) {
    const float seen = lse[token * lse_stride + head];
    rows[head * tokens + token] =
        make_float2(seen == MinusInfinity() ? -MinusInfinity() : seen * kLog2E, delta);
  }
}

template <typename C, bool kOrdered>
cudaError_t LaunchBackward(cudaStream_t stream, const AttentionHopperBackwardArgs& args) {
  const auto kernel = AttentionBackwardKernel<C, kOrdered>;
  BackwardParams params = {};
  if (!MapTiles(Element::kBf16, args.q, args.q_tokens, args.q_stride, args.heads, C::kHeadDim,
                C::kQueries, C::kHeadDim, &params.q) ||
      !MapTiles(Element::kBf16, args.d_o, args.q_tokens, args.d_o_stride, args.heads, C::kHeadDim,
                C::kQueries, C::kHeadDim, &params.d_o) ||
      !MapTiles(Element::kBf16, args.k, args.k_tokens, args.k_stride, args.kv_heads, C::kHeadDim,
                C::kKeys, C::kHeadDim, &params.k) ||
      !MapTiles(Element::kBf16, args.v, args.k_tokens, args.v_stride, args.kv_heads, C::kHeadDim,
                C::kKeys, C::kHeadDim, &params.v) ||
      !MapTiles(Element::kF32, args.dq, args.q_tokens, args.dq_stride, args.heads, C::kHeadDim,
                kMmaRows, kPanelColumns, &params.dq) ||
      (args.turns != nullptr && args.first_queries == nullptr)) {
    return cudaErrorInvalidValue;
  }
  int device = 0, processors = 0, l2_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device);
  }
  constexpr int kSharedBytes = sizeof(BackwardShared<C>) + kSwizzleAtomBytes;
  static_assert(kSharedBytes <= 227 * 1024, "beyond what a thread block can have");
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (kOrdered && error == cudaSuccess) {
    const int64_t turns =
        QueryTurns<C>(args.q_tokens, args.heads) + RowTurns<C>(args.tile_count, args.kv_heads);
    error = cudaMemsetAsync(args.turns, 0, turns * sizeof(int32_t), stream);
  }
  if (error != cudaSuccess) return error;

  const int64_t head_bytes = args.q_tokens * C::kHeadDim * 8;  // Q, dO and the sums dQ
  // In order, all heads at a time: blocks of keys of one head would wait for each other.
  const int64_t at_a_time =
      kOrdered ? args.heads : std::clamp<int64_t>(l2_bytes / 2 / head_bytes, 1, args.heads);
  params.tasks = {args.tiles, args.tile_count, args.heads, static_cast<int>(at_a_time),
                  args.counters};
  params.kv_index = args.kv_index;
  params.first_queries = args.first_queries;
  params.rows = reinterpret_cast<const float2*>(args.rows);
  params.dk = args.dk;
  params.dv = args.dv;
  params.q_tokens = args.q_tokens;
  params.dk_stride = args.dk_stride;
  params.dv_stride = args.dv_stride;
  params.scale = args.scale;
  params.scale_log2 = args.scale * kLog2E;
  const int blocks = std::min<int64_t>(processors, int64_t{args.tile_count} * args.heads);
  params.turns = args.turns;
  params.kv_heads = args.kv_heads;
  kernel<<<blocks, C::kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <typename C>
cudaError_t LaunchBackward(cudaStream_t stream, const AttentionHopperBackwardArgs& args) {
  return args.turns == nullptr ? LaunchBackward<C, false>(stream, args)
                               : LaunchBackward<C, true>(stream, args);
}

}  // namespace
}  // namespace hopper

int AttentionHopperBackwardKeys(int head_dim) { return hopper::KeysOf(head_dim); }

int AttentionHopperBackwardQueries(int head_dim) {
  return hopper::OfCut(head_dim, [](auto cut) { return decltype(cut)::kQueries; });
}

int64_t AttentionHopperBackwardTurns(int head_dim, int64_t q_tokens, int heads, int tile_count,
                                     int kv_heads) {
  return hopper::OfCut(head_dim, [&](auto cut) {
    using C = decltype(cut);
    return hopper::QueryTurns<C>(q_tokens, heads) + hopper::RowTurns<C>(tile_count, kv_heads);
  });
}

std::vector<AttentionTile> CutTilesByKeys(const std::vector<AttentionTile>& tiles, int head_dim) {
  const int keys = hopper::KeysOf(head_dim);
  std::vector<AttentionTile> cut;
  for (const AttentionTile& tile : tiles) {
    for (int begin = 0; begin < tile.k_count; begin += keys) {
      AttentionTile part = tile;
      part.k_begin += begin;
      part.k_count = std::min(keys, tile.k_count - begin);
      if (tile.diagonal != kAllVisible) {
        const int first_query = std::max(0, begin - tile.diagonal);  // the first to see key `begin`
        part.q_begin += first_query;
        part.q_count -= first_query;
        part.diagonal = tile.diagonal - begin + first_query;
      }
      if (part.q_count > 0) cut.push_back(part);
    }
  }
  std::stable_sort(cut.begin(), cut.end(), [](const AttentionTile& a, const AttentionTile& b) {
    return a.q_count > b.q_count;
  });
  return cut;
}

cudaError_t AttentionRowsHopper(cudaStream_t stream, const float* o, int64_t o_stride,
                                const float* lse, int64_t lse_stride, const void* d_o,
                                int64_t d_o_stride, int64_t tokens, int heads, int head_dim,
                                float* rows) {
  const int64_t warps = tokens * heads;
  if (warps == 0) return cudaSuccess;
  constexpr int kWarps = hopper::kRowsThreads / hopper::kWarpThreads;
  hopper::RowsKernel<<<(warps + kWarps - 1) / kWarps, hopper::kRowsThreads, 0, stream>>>(
      o, o_stride, lse, lse_stride, static_cast<const __nv_bfloat16*>(d_o), d_o_stride, tokens,
      heads, head_dim, reinterpret_cast<float2*>(rows));
  return cudaGetLastError();
}

cudaError_t AttendTilesBackwardHopper(cudaStream_t stream,
                                      const AttentionHopperBackwardArgs& args) {
  if (args.tile_count == 0 || args.heads == 0) return cudaSuccess;
  if (!(args.scale > 0) || args.kv_heads < 1) return cudaErrorInvalidValue;
  if (hopper::KeysOf(args.head_dim) == 0) return cudaErrorInvalidValue;
  return hopper::OfCut(
      args.head_dim, [&](auto cut) { return hopper::LaunchBackward<decltype(cut)>(stream, args); });
}

}  // namespace toroid
