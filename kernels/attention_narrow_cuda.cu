#include <algorithm>

#include "kernels/attention_device.cuh"
#include "kernels/attention_merge.h"

namespace toroid {

namespace {

constexpr int kTeam = 8;    // lanes that share a key
constexpr int kTeams = 16;  // of a block
constexpr int64_t kNarrowQueries = 16, kNarrowHeadDim = 256;

// One query head of one token against one part of the keys, from a fresh carry. A team takes every
// 16th key; lane l of it holds elements 32 c + 4 l .. + 3 of the head. Then the teams are merged.
template <typename E, int kFours, bool kVector>
__global__ void NarrowKernel(AttentionArgs<float> a, int64_t keys_per_part, float* o_parts,
                             float* lse_parts) {
  __shared__ __align__(16) float team_o[kTeams][kFours * 32];
  __shared__ float team_max[kTeams], team_sum[kTeams];
  const int64_t part = blockIdx.x, head = blockIdx.y, token = blockIdx.z;
  const int lane = threadIdx.x % kTeam, team = threadIdx.x / kTeam;
  const int64_t kv_head = a.kv_index[head];
  const float* q = a.q + (a.q_begin + token) * a.q_stride + head * a.head_dim;
  const E* k = static_cast<const E*>(a.k) + kv_head * a.head_dim;
  const E* v = static_cast<const E*>(a.v) + kv_head * a.head_dim;
  const int64_t k_end = a.k_begin + a.k_count, begin = a.k_begin + part * keys_per_part;
  const KeyRange seen = VisibleKeys(a, a.q_begin + token, begin, min(k_end, begin + keys_per_part));

  float4 query[kFours], o[kFours];
#pragma unroll
  for (int c = 0; c < kFours; ++c) {
    query[c] = LoadFour<kVector>(q, c * 32 + lane * 4, a.head_dim);
    o[c] = {0, 0, 0, 0};
  }
  float max = -INFINITY, sum = 0;
  // Every team makes the same number of steps, so that a warp's shuffles meet.
  for (int64_t first = seen.begin; first < seen.end; first += kTeams) {
    const int64_t key = first + team;
    const bool here = key < seen.end;
    const int64_t row = PhysicalRow(a, here ? key : first);
    float dot = 0;
#pragma unroll
    for (int c = 0; c < kFours; ++c) {
      const float4 four = LoadFour<kVector>(k + row * a.k_stride, c * 32 + lane * 4, a.head_dim);
      dot += Dot(query[c], four);
    }
    for (int i = kTeam / 2; i > 0; i /= 2) dot += __shfl_xor_sync(kAllLanes, dot, i);
    if (!here) continue;
    const float score = dot * float(a.scale);
    const float higher = fmaxf(max, score);
    const float kept = expf(max - higher), weight = expf(score - higher);
    max = higher;
    sum = sum * kept + weight;
#pragma unroll
    for (int c = 0; c < kFours; ++c) {
      const float4 four = LoadFour<kVector>(v + row * a.v_stride, c * 32 + lane * 4, a.head_dim);
      o[c].x = o[c].x * kept + weight * four.x;
      o[c].y = o[c].y * kept + weight * four.y;
      o[c].z = o[c].z * kept + weight * four.z;
      o[c].w = o[c].w * kept + weight * four.w;
    }
  }
#pragma unroll
  for (int c = 0; c < kFours; ++c) {
    *reinterpret_cast<float4*>(&team_o[team][c * 32 + lane * 4]) = o[c];
  }
  if (lane == 0) team_max[team] = max, team_sum[team] = sum;
  __syncthreads();  // waits for every team's result

  float highest = -INFINITY, total = 0;
  for (int i = 0; i < kTeams; ++i) highest = fmaxf(highest, team_max[i]);
  for (int i = 0; i < kTeams && highest > -INFINITY; ++i) {
    total += team_sum[i] * expf(team_max[i] - highest);
  }
  const int64_t row = (part * gridDim.z + token) * a.heads + head;
  for (int64_t d = threadIdx.x; d < a.head_dim; d += kTeam * kTeams) {
    float value = 0;
    for (int i = 0; i < kTeams && highest > -INFINITY; ++i) {
      value += team_o[i][d] * expf(team_max[i] - highest);
    }
    o_parts[row * a.head_dim + d] = total > 0 ? value / total : 0.0f;
  }
  if (threadIdx.x == 0) lse_parts[row] = total > 0 ? highest + logf(total) : -INFINITY;
}

template <typename E, bool kVector>
void Attend(CudaStream s, const AttentionArgs<float>& a, void* workspace, int64_t workspace_bytes) {
  // Parts by shape alone: enough blocks to fill a large device, but 64 keys at least to each.
  constexpr int64_t kBlocks = 512, kFewestKeys = 64;
  const int64_t rows = a.q_count * a.heads;
  const int64_t room = workspace_bytes / (rows * (a.head_dim + 1) * 4);
  const int64_t wanted = std::min(CeilDiv(kBlocks, rows), CeilDiv(a.k_count, kFewestKeys));
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, room));
  const int64_t keys = CeilDiv(a.k_count, parts);
  float* o_parts = static_cast<float*>(workspace);
  float* lse_parts = o_parts + parts * rows * a.head_dim;
  const dim3 grid{unsigned(parts), unsigned(a.heads), unsigned(a.q_count)};
  constexpr int kThreads = kTeam * kTeams;
  if (a.head_dim <= 64) {
    NarrowKernel<E, 2, kVector><<<grid, kThreads, 0, s>>>(a, keys, o_parts, lse_parts);
  } else if (a.head_dim <= 128) {
    NarrowKernel<E, 4, kVector><<<grid, kThreads, 0, s>>>(a, keys, o_parts, lse_parts);
  } else {
    NarrowKernel<E, 8, kVector><<<grid, kThreads, 0, s>>>(a, keys, o_parts, lse_parts);
  }
  MergeArgs<float> merge;
  merge.o_parts = o_parts, merge.lse_parts = lse_parts;
  merge.parts = parts, merge.rows = rows, merge.heads = a.heads, merge.dim = a.head_dim;
  merge.o_part_stride = rows * a.head_dim, merge.lse_part_stride = rows;
  merge.o = a.o + a.q_begin * a.o_stride, merge.o_stride = a.o_stride;
  merge.lse = a.lse + a.q_begin * a.lse_stride, merge.lse_stride = a.lse_stride;
  merge.carry = true;
  AttentionMerge(s, merge);
}

}  // namespace

bool AttendNarrow(CudaStream s, const AttentionArgs<float>& args, void* workspace,
                  int64_t workspace_bytes) {
  const int64_t part_bytes = args.q_count * args.heads * (args.head_dim + 1) * 4;
  if (args.q_count >= kNarrowQueries || args.head_dim > kNarrowHeadDim ||
      part_bytes > workspace_bytes) {
    return false;
  }
  WithKvType(args, [&]<typename E>(E, auto vector) {
    Attend<E, decltype(vector)::value>(s, args, workspace, workspace_bytes);
  });
  return true;
}

}  // namespace toroid
