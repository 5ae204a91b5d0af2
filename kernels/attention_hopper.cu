// Launcher of the Hopper attention kernel; the kernel itself: hopper/attention_forward.cuh.
#include <cuda.h>

#include <algorithm>

#include "kernels/attention_hopper.h"
#include "kernels/hopper/attention_forward.cuh"
#include "kernels/hopper/tensor_map.h"

namespace toroid {
namespace hopper {
namespace {

using Cut64 = Cut<64, 3, 128, 3>;
using Cut128 = Cut<128, 2, 128, 3>;
using Cut256 = Cut<256, 2, 80, 2>;

template <typename C>
cudaError_t Launch(cudaStream_t stream, const AttentionHopperArgs& args) {
  Params params = {};
  if (!MapTiles(Element::kBf16, args.q, args.q_tokens, args.q_stride, args.heads, C::kHeadDim,
                C::kRows, C::kHeadDim, &params.q) ||
      !MapTiles(Element::kBf16, args.k, args.k_tokens, args.k_stride, args.kv_heads, C::kHeadDim,
                C::kKeys, C::kHeadDim, &params.k) ||
      !MapTiles(Element::kBf16, args.v, args.k_tokens, args.v_stride, args.kv_heads, C::kHeadDim,
                C::kKeys, C::kHeadDim, &params.v)) {
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
  constexpr int kSharedBytes = sizeof(Shared<C>) + kSwizzleAtomBytes;
  static_assert(kSharedBytes <= 227 * 1024, "beyond what a thread block can have");
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(AttentionKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kSharedBytes);
  }
  if (error != cudaSuccess) return error;

  const int64_t kv_head_bytes = args.k_tokens * C::kHeadDim * 4;
  const int64_t kv_heads = std::clamp<int64_t>(l2_bytes / 2 / kv_head_bytes, 1, args.kv_heads);
  params.tasks = {args.tiles, args.tile_count, args.heads,
                  static_cast<int>(std::max<int64_t>(1, kv_heads * args.heads / args.kv_heads)),
                  args.counters};
  params.kv_index = args.kv_index;
  params.limits = args.limits;
  params.o = args.o;
  params.o_stride = args.o_stride;
  params.lse = args.lse;
  params.lse_stride = args.lse_stride;
  params.head_dim = C::kHeadDim;
  params.scale_log2 = args.scale * kLog2E;
  params.fresh = args.fresh;
  const int blocks = std::min<int64_t>(processors, int64_t{args.tile_count} * args.heads);
  AttentionKernel<C><<<blocks, C::kThreads, kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace
}  // namespace hopper

int AttentionHopperRows(int head_dim) {
  return head_dim == 64    ? hopper::Cut64::kRows
         : head_dim == 128 ? hopper::Cut128::kRows
         : head_dim == 256 ? hopper::Cut256::kRows
                           : 0;
}

std::vector<AttentionTile> CutTiles(const std::vector<AttentionTile>& tiles, int head_dim,
                                    bool fresh) {
  const int rows = AttentionHopperRows(head_dim);
  const auto keys = [](const AttentionTile& t) { return hopper::Limit(t, t.q_count - 1); };
  std::vector<AttentionTile> cut;
  for (const AttentionTile& tile : tiles) {
    for (int begin = 0; begin < tile.q_count; begin += rows) {
      AttentionTile part = tile;
      part.q_begin += begin;
      part.q_count = std::min(rows, tile.q_count - begin);
      if (tile.diagonal != kAllVisible) part.diagonal += begin;
      if (fresh || keys(part) > 0) cut.push_back(part);
    }
  }
  std::stable_sort(cut.begin(), cut.end(), [&](const AttentionTile& a, const AttentionTile& b) {
    return keys(a) > keys(b);
  });
  return cut;
}

cudaError_t AttendTilesHopper(cudaStream_t stream, const AttentionHopperArgs& args) {
  if (args.tile_count == 0 || args.heads == 0) return cudaSuccess;
  if (!(args.scale > 0) || args.kv_heads < 1) return cudaErrorInvalidValue;
  switch (args.head_dim) {
    case 64:
      return hopper::Launch<hopper::Cut64>(stream, args);
    case 128:
      return hopper::Launch<hopper::Cut128>(stream, args);
    case 256:
      return hopper::Launch<hopper::Cut256>(stream, args);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace toroid
