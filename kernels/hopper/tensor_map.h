// Host side of tma.cuh: describes [tokens, heads, head_dim] to the copy engine.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace toroid::hopper {

enum class Element { kBf16, kF32 };

// Boxes of `rows` tokens by `columns` of one head, in panels of 128 bytes. Dimensions, innermost
// first: column of a panel, token, panel, head. False if the driver refuses: base or stride not on
// 16 bytes, no tokens.
inline bool MapTiles(Element element, const void* base, int64_t tokens, int64_t stride, int heads,
                     int head_dim, int rows, int columns, CUtensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {  // from the driver at run time: nothing links against it
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess ? reinterpret_cast<Encode>(symbol) : nullptr;
  }();
  if (encode == nullptr || tokens <= 0 || stride <= 0) return false;
  const bool bf16 = element == Element::kBf16;
  const cuuint64_t bytes = bf16 ? 2 : 4;
  const cuuint64_t panel = 128 / bytes;  // columns
  const cuuint64_t dims[4] = {panel, static_cast<cuuint64_t>(tokens), head_dim / panel,
                              static_cast<cuuint64_t>(heads)};
  const cuuint64_t strides[3] = {stride * bytes, 128, head_dim * bytes};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(panel), static_cast<cuuint32_t>(rows),
                             static_cast<cuuint32_t>(columns / panel), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  return encode(map, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4,
                const_cast<void*>(base), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace toroid::hopper
