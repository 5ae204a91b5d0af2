// Warpgroup matrix products (wgmma): D (64 x N, float32, in registers) += A B, bf16 operands.
//
// Fragment of D, thread t of the warpgroup, lane l = t % 32: rows 16 (t / 32) + l / 4 + 8 h for
// h = 0, 1; columns 8 j + 2 (l % 4) + e for e = 0, 1; d[4 j + 2 h + e]. The fragment of A in
// registers for 16 columns is that of two neighbouring j, so probabilities stay where they were
// made.
//
// Order: Fence() (registers written so far are the product's), products, Commit(); WaitFor<n>()
// until at most n later groups are pending. Between issue and wait nothing may touch the registers;
// Pin() keeps the compiler from moving such accesses across.
#pragma once

#include <cstdint>

#include "kernels/hopper/mbarrier.cuh"
#include "kernels/hopper/tma.cuh"
#include "kernels/hopper/wgmma_instructions.cuh"

namespace toroid::hopper {

inline constexpr int kMmaRows = 64;
inline constexpr int kMmaDepth = 16;  // columns of A per instruction

__device__ inline void Fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void Commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void WaitFor() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ void Pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ void Pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Describes an operand in shared memory, 128-byte swizzle (PTX ISA, "matrix descriptor"): address,
// leading and stride offsets in units of 16 bytes.
__device__ inline uint64_t Descriptor(const void* tile, uint32_t leading_bytes,
                                      uint32_t stride_bytes) {
  const uint64_t swizzle_128 = uint64_t{1} << 62;
  return swizzle_128 | uint64_t{(SharedAddress(tile) & 0x3ffff) >> 4} |
         uint64_t{leading_bytes >> 4} << 16 | uint64_t{stride_bytes >> 4} << 32;
}

// A tile [kRows][kColumns] in panels (tma.cuh) whose product runs along its columns (K-major): the
// operands of Q K^T. Columns 16 step .. 16 step + 15 of all rows: 32 bytes further in a panel's
// rows; 8 rows are one swizzle atom from the next 8.
template <int kRows>
struct AlongColumns {
  uint64_t base;
  __device__ explicit AlongColumns(const void* tile)
      : base(Descriptor(tile, 16, kSwizzleAtomBytes)) {}
  __device__ uint64_t Step(int step) const {
    constexpr int kStepsPerPanel = kPanelColumns / kMmaDepth;
    const int bytes = step / kStepsPerPanel * kRows * 128 + step % kStepsPerPanel * 32;
    return base + (bytes >> 4);
  }
};

// The same tile when the product runs along its rows (MN-major): V in P V. Rows 16 step ..
// 16 step + 15 of all columns: two atoms; a panel lies kRows * 128 bytes from the next.
template <int kRows>
struct AlongRows {
  uint64_t base;
  __device__ explicit AlongRows(const void* tile)
      : base(Descriptor(tile, kRows * 128, kSwizzleAtomBytes)) {}
  __device__ uint64_t Step(int step) const { return base + (step * kMmaDepth * 128 >> 4); }
};

}  // namespace toroid::hopper
