// Tiles of 64 by 64 in shared memory, and products of two of them, in float32: what the plain CUDA
// attention kernels share. A block is 16 x 16 threads (ty, tx). Included by kernel files alone.
#pragma once

#include "kernels/attention_device.cuh"

namespace toroid {

namespace {

constexpr int kTile = 64;          // queries and keys of a tile, and elements of a head at a time
constexpr int kPitch = kTile + 4;  // of rows in shared memory: 16 bytes aside, against conflicts
constexpr int kTileThreads = 256;  // 16 x 16, each with 4 queries and 4 keys (or elements)

// rows [64] of 64 elements from `d` on, one row per source(r); null: zeros.
template <bool kVector, typename Source>
__device__ inline void LoadTile(float (*out)[kPitch], int64_t d, int64_t head_dim, Source source) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = i * 16 + threadIdx.x / 16, c = threadIdx.x % 16 * 4;
    float4 four = {0, 0, 0, 0};
    if (const auto* head = source(r)) four = LoadFour<kVector>(head, d + c, head_dim);
    *reinterpret_cast<float4*>(&out[r][c]) = four;
  }
}

// sum[i][j] += rows 4 ty + i of a times rows tx + 16 j of b, transposed.
__device__ inline void AddScores(const float (*a)[kPitch], const float (*b)[kPitch], int ty, int tx,
                                 float (&sum)[4][4]) {
#pragma unroll 4
  for (int d = 0; d < kTile; d += 4) {
    float4 left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = *reinterpret_cast<const float4*>(&a[ty * 4 + i][d]);
      right[i] = *reinterpret_cast<const float4*>(&b[tx + i * 16][d]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += Dot(left[i], right[j]);
    }
  }
}

// o[i][j] += rows 4 ty + i of p times columns 4 tx + j of v.
__device__ inline void AddValues(const float (*p)[kPitch], const float (*v)[kPitch], int ty, int tx,
                                 float (&o)[4][4]) {
#pragma unroll 4
  for (int key = 0; key < kTile; key += 4) {
    float4 values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      values[k] = *reinterpret_cast<const float4*>(&v[key + k][tx * 4]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(&p[ty * 4 + i][key]);
      o[i][0] += w.x * values[0].x + w.y * values[1].x + w.z * values[2].x + w.w * values[3].x;
      o[i][1] += w.x * values[0].y + w.y * values[1].y + w.z * values[2].y + w.w * values[3].y;
      o[i][2] += w.x * values[0].z + w.y * values[1].z + w.z * values[2].z + w.w * values[3].z;
      o[i][3] += w.x * values[0].w + w.y * values[1].w + w.z * values[2].w + w.w * values[3].w;
    }
  }
}

__device__ inline float SixteenSum(float x) {
  for (int i = 8; i > 0; i /= 2) x += __shfl_xor_sync(kAllLanes, x, i);
  return x;
}
__device__ inline float SixteenMax(float x) {
  for (int i = 8; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, i));
  return x;
}

}  // namespace
}  // namespace toroid
