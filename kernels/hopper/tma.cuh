// The tensor memory accelerator: one thread asks, the copy engine fills a tile in shared memory.
//
// A tile is `rows` tokens of one head: kHeadDim bf16 each, kept as kHeadDim / 64 panels of
// [rows][64], so that a panel's row is 128 bytes, the span of the 128-byte swizzle: the 16-byte
// chunk c of row r lies at chunk c ^ (r % 8). The tensor cores read that pattern without bank
// conflicts. Rows outside the tensor arrive as zeros.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/hopper/mbarrier.cuh"

namespace toroid::hopper {

inline constexpr int kPanelColumns = 64;        // bf16 in 128 bytes
inline constexpr int kSwizzleAtomBytes = 1024;  // 8 rows of 128 bytes: alignment of a panel

// What the L2 cache should do with the lines of a copy.
__device__ inline uint64_t KeepInL2() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t ReadOnceFromL2() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ inline void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the tile that begins at token `row` of `head`; `full` learns of its bytes.
__device__ inline void LoadTile(void* tile, const CUtensorMap* map, int row, int head,
                                Barrier* full, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(SharedAddress(tile)),
      "l"(map), "r"(SharedAddress(full)), "r"(0), "r"(row), "r"(0), "r"(head), "l"(policy)
      : "memory");
}

// Adds a box of float32 from shared memory (panels of 32 columns, swizzled as above) to device
// memory, at token `row` and panel `panel` of `head`; rows outside the tensor are left out. The box
// may be overwritten after WaitForReads by the same thread.
__device__ inline void AddTile(const CUtensorMap* map, const void* tile, int row, int panel,
                               int head) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group"
      " [%0, {%2, %3, %4, %5}], [%1];\n"
      "cp.async.bulk.commit_group;" ::"l"(map),
      "r"(SharedAddress(tile)), "r"(0), "r"(row), "r"(panel), "r"(head)
      : "memory");
}
// Until at most kPending later boxes are still being read.
template <int kPending>
__device__ void WaitForReads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// What this thread had added is in device memory.
__device__ inline void WaitForAdds() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace toroid::hopper
