// Host side of tma.cuh: describes [tokens, heads, head_dim] bf16 to the copy engine.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace toroid::hopper {

// Tiles of `rows` tokens of one head, in panels of 64 columns. Dimensions, innermost first: column
// of a panel, token, panel, head. False if the driver refuses: base not on 16 bytes, stride not a
// multiple of 8 elements, no tokens.
inline bool MapTiles(const void* base, int64_t tokens, int64_t stride, int heads, int head_dim,
                     int rows, CUtensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {  // from the driver at run time: nothing links against it
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  if (encode == nullptr || tokens <= 0 || stride <= 0) return false;
  constexpr int kPanel = 64;
  const cuuint64_t dims[4] = {kPanel, static_cast<cuuint64_t>(tokens),
                              static_cast<cuuint64_t>(head_dim / kPanel),
                              static_cast<cuuint64_t>(heads)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(stride) * 2, kPanel * 2,
                                 static_cast<cuuint64_t>(head_dim) * 2};
  const cuuint32_t box[4] = {kPanel, static_cast<cuuint32_t>(rows),
                             static_cast<cuuint32_t>(head_dim / kPanel), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(base), dims, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace toroid::hopper
