// Accumulator fragments (wgmma.cuh) on their way out: to shared memory as an operand of another
// product or as a box for the copy engine, or added in device memory.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/hopper/mbarrier.cuh"
#include "kernels/hopper/tma.cuh"
#include "kernels/hopper/warpgroup.cuh"
#include "kernels/hopper/wgmma.cuh"

namespace toroid::hopper {

// Where a thread's fragments lie: rows first + 8 h of the warpgroup's 64, columns 8 j + column + e.
struct Place {
  int warpgroup, first, column;

  __device__ explicit Place(int warpgroup) : warpgroup(warpgroup) {
    const int thread = threadIdx.x % kWarpgroupThreads, lane = thread % kWarpThreads;
    first = thread / kWarpThreads * 16 + lane / 4;
    column = lane % 4 * 2;
  }
};

// Stores a fragment rounded to bf16 as rows of swizzled panels (tma.cuh): four 8 x 8 matrices,
// those of rows + 0, + 8 and of two neighbouring j, per instruction.
template <int kRows, int kCount>
__device__ void StoreRounded(__nv_bfloat16* tile, const uint32_t (&rounded)[kCount],
                             int warpgroup) {
  const int thread = threadIdx.x % kWarpgroupThreads, lane = thread % kWarpThreads;
  const int row = warpgroup * kMmaRows + thread / kWarpThreads * 16 + lane % 16;  // this lane's
#pragma unroll
  for (int j = 0; j < kCount / 2; j += 2) {
    const int chunk = (j + lane / 16) % 8;  // of 16 bytes
    const uint32_t address = SharedAddress(tile + j / 8 * kRows * kPanelColumns +
                                           row * kPanelColumns + (chunk ^ row % 8) * 8);
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(rounded[2 * j]), "r"(rounded[2 * j + 1]), "r"(rounded[2 * j + 2]),
                 "r"(rounded[2 * j + 3])
                 : "memory");
  }
}

// Loads what StoreRounded stored as rounded[2 j] .. rounded[2 j + 3], j even.
template <int kRows>
__device__ void LoadRounded(const __nv_bfloat16* tile, uint32_t (&rounded)[4], int j,
                            int warpgroup) {
  const int thread = threadIdx.x % kWarpgroupThreads, lane = thread % kWarpThreads;
  const int row = warpgroup * kMmaRows + thread / kWarpThreads * 16 + lane % 16;
  const int chunk = (j + lane / 16) % 8;
  const uint32_t address = SharedAddress(tile + j / 8 * kRows * kPanelColumns +
                                         row * kPanelColumns + (chunk ^ row % 8) * 8);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(rounded[0]), "=r"(rounded[1]), "=r"(rounded[2]), "=r"(rounded[3])
               : "r"(address)
               : "memory");
}

// Stores scale D as a swizzled box of two panels of 32 columns (tma.cuh): 16-byte chunk c of row r
// lies at chunk c ^ (r % 8).
__device__ inline void StoreBox(float* box, const float (&d)[kPanelColumns / 2], float scale,
                                const Place& at) {
#pragma unroll
  for (int j = 0; j < kPanelColumns / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = at.first + 8 * h, chunk = j % 4 * 2 + at.column / 4;
      float* to = box + j / 4 * kMmaRows * 32 + row * 32 + (chunk ^ row % 8) * 4 + at.column % 4;
      *reinterpret_cast<float2*>(to) =
          make_float2(scale * d[4 * j + 2 * h], scale * d[4 * j + 2 * h + 1]);
    }
  }
}

// Adds scale D to rows row0 + first + 8 h of `to`, below `rows`.
template <int kCount>
__device__ void AddRows(float* to, int64_t stride, const float (&d)[kCount], float scale, int row0,
                        int rows, const Place& at) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + at.first + 8 * h;
    if (row >= rows) continue;
    float* line = to + row * stride + at.column;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(line + 8 * j),
                   "f"(scale * d[4 * j + 2 * h]), "f"(scale * d[4 * j + 2 * h + 1])
                   : "memory");
    }
  }
}

}  // namespace toroid::hopper
