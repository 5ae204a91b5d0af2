#include <algorithm>

#include "kernels/attention_device.cuh"
#include "kernels/attention_merge.h"
#include "kernels/overlap.cuh"

namespace toroid {

namespace {

constexpr int kTeam = 8;    // lanes that share a key
constexpr int kTeams = 16;  // of a block
constexpr int kThreads = kTeam * kTeams;
constexpr int64_t kNarrowQueries = 16, kNarrowHeadDim = 256;
constexpr int kMostParts = 64;
// Blocks that a multiprocessor holds at once, by how many times 32 elements a head has: registers
// are what there is least of.
constexpr int BlocksAtOnce(int fours) { return fours <= 2 ? 4 : 2; }

// Where the parts of the keys leave (o, lse), and how many blocks of a row's group have.
struct PartRoom {
  int64_t keys;  // of a part
  float* o;      // [parts, tokens, heads, head_dim]
  float* lse;
  int32_t* arrived;  // [tokens, groups], zero before and after; null: somebody else merges
};

// What a team knows of kHeads query heads: lane l holds elements 32 c + 4 l .. + 3 of each.
template <int kFours, int kHeads>
struct Carry {
  float4 o[kHeads][kFours];
  float max[kHeads], sum[kHeads];
};

// Query heads [begin, end) of the group, which read one KV head, against the keys of this part. A
// team takes kKeys of every 16 kKeys, fetched together. The group's other heads are computed with
// them and see nothing: without branches what is done to one head does not wait for another.
template <typename E, int kFours, int kHeads, int kKeys, bool kVector>
__device__ void AttendRun(const AttentionArgs<float>& a, int64_t token, int64_t head, int begin,
                          int end, const KeyRange& seen, Carry<kFours, kHeads>& carry) {
  const int lane = threadIdx.x % kTeam, team = threadIdx.x / kTeam;
  const int64_t kv_head = a.kv_index[head + begin];
  const float* q = a.q + (a.q_begin + token) * a.q_stride + head * a.head_dim;
  const E* k = static_cast<const E*>(a.k) + kv_head * a.head_dim;
  const E* v = static_cast<const E*>(a.v) + kv_head * a.head_dim;
  float4 query[kHeads][kFours];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int c = 0; c < kFours; ++c) {
      query[h][c] = {0, 0, 0, 0};
      if (h < begin || h >= end) continue;
      query[h][c] = LoadFour<kVector>(q + h * a.head_dim, c * 32 + lane * 4, a.head_dim);
    }
  }
  // Every team makes the same number of steps, so that a warp's shuffles meet.
  for (int64_t first = seen.begin; first < seen.end; first += kTeams * kKeys) {
    float4 key[kKeys][kFours], value[kKeys][kFours];
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const int64_t at = first + j * kTeams + team;
      const int64_t row = PhysicalRow(a, at < seen.end ? at : first);
#pragma unroll
      for (int c = 0; c < kFours; ++c) {
        const int64_t d = c * 32 + lane * 4;
        key[j][c] = LoadFour<kVector>(k + row * a.k_stride, d, a.head_dim);
        value[j][c] = LoadFour<kVector>(v + row * a.v_stride, d, a.head_dim);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score[kKeys], higher = carry.max[h];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        float dot = 0;
#pragma unroll
        for (int c = 0; c < kFours; ++c) dot += Dot(query[h][c], key[j][c]);
        for (int i = kTeam / 2; i > 0; i /= 2) dot += __shfl_xor_sync(kAllLanes, dot, i);
        const bool here = first + j * kTeams + team < seen.end && h >= begin && h < end;
        score[j] = here ? dot * float(a.scale) : -INFINITY;
        higher = fmaxf(higher, score[j]);
      }
      const float base = higher > -INFINITY ? higher : 0.0f;  // no -inf - -inf
      const float kept = expf(carry.max[h] - base);
      carry.max[h] = higher;
      carry.sum[h] *= kept;
#pragma unroll
      for (int c = 0; c < kFours; ++c) {
        float4& o = carry.o[h][c];
        o.x *= kept, o.y *= kept, o.z *= kept, o.w *= kept;
      }
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const float weight = expf(score[j] - base);
        carry.sum[h] += weight;
#pragma unroll
        for (int c = 0; c < kFours; ++c) {
          float4& o = carry.o[h][c];
          o.x += weight * value[j][c].x, o.y += weight * value[j][c].y;
          o.z += weight * value[j][c].z, o.w += weight * value[j][c].w;
        }
      }
    }
  }
}

// Continues the carry with all parts of the group's heads, as AttentionMerge does: the last block
// of a group to arrive calls it. kElements: of o, to a thread.
template <int kElements>
__device__ void MergeParts(const AttentionArgs<float>& a, const PartRoom& room, int64_t token,
                           int64_t head, int heads) {
  __shared__ float weights[4][kMostParts], first_weights[4];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, parts = int(gridDim.x);
  const int64_t part_rows = int64_t{gridDim.z} * a.heads, row = token * a.heads + head;
  float* o = a.o + (a.q_begin + token) * a.o_stride + head * a.head_dim;
  for (int h = warp; h < heads; h += kThreads / kWarp) {
    float* lse_out = a.lse + (a.q_begin + token) * a.lse_stride + head + h;
    const float carried = *lse_out;
    float max = -INFINITY, own[kMostParts / kWarp];
#pragma unroll
    for (int i = 0; i < kMostParts / kWarp; ++i) {
      const int part = i * kWarp + lane;
      own[i] = part < parts ? __ldcg(room.lse + part * part_rows + row + h) : -INFINITY;
      max = fmaxf(max, own[i]);
    }
    max = fmaxf(WarpMax(max), carried);
    const float base = max > -INFINITY ? max : 0.0f;  // no -inf - -inf
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostParts / kWarp; ++i) sum += expf(own[i] - base);
    sum = WarpSum(sum) + expf(carried - base);
    const float lse = max > -INFINITY ? max + logf(sum) : 0.0f;
#pragma unroll
    for (int i = 0; i < kMostParts / kWarp; ++i) {
      weights[h][i * kWarp + lane] = expf(own[i] - lse);
    }
    // A row that sees no key keeps its bits.
    if (lane == 0) first_weights[h] = max > -INFINITY ? expf(carried - lse) : 1.0f;
    __syncwarp();  // waits for every lane's reading of the carried lse
    if (lane == 0 && max > -INFINITY) *lse_out = lse;
  }
  __syncthreads();  // waits for the weights
  const int dim = int(a.head_dim), size = heads * dim;
  const float* from = room.o + row * dim;
  int at[kElements];
  const float* weight[kElements];
  float total[kElements] = {};
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    at[e] = min(e * kThreads + int(threadIdx.x), size - 1);
    weight[e] = weights[at[e] / dim];
  }
#pragma unroll 8  // without a branch, so that what is read of eight parts is on its way at once
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      total[e] += weight[e][part] * __ldcg(from + part * part_rows * dim + at[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    if (e * kThreads + int(threadIdx.x) >= size) break;
    const float kept = first_weights[at[e] / dim];
    o[at[e]] = total[e] + (kept > 0 ? o[at[e]] * kept : 0.0f);
  }
}

// kHeads query heads of one token against one part of the keys, from a fresh carry; those that read
// one KV head together. Then the teams are merged, and by the last block the parts.
template <typename E, int kFours, int kHeads, int kKeys, bool kVector>
__global__ void __launch_bounds__(kThreads, BlocksAtOnce(kFours))
    NarrowKernel(AttentionArgs<float> a, PartRoom room) {
  __shared__ __align__(16) float team_o[kTeams][kHeads][kFours * 32];
  __shared__ float team_max[kHeads][kTeams], team_sum[kHeads][kTeams];  // then the team's weight
  __shared__ bool is_last;
  AwaitEarlierKernels();
  LetNextKernelBegin();
  const int64_t part = blockIdx.x, head = int64_t{blockIdx.y} * kHeads, token = blockIdx.z;
  const int heads = int(min(int64_t{kHeads}, a.heads - head));
  const int lane = threadIdx.x % kTeam, team = threadIdx.x / kTeam;
  const int64_t k_end = a.k_begin + a.k_count, begin = a.k_begin + part * room.keys;
  const KeyRange seen = VisibleKeys(a, a.q_begin + token, begin, min(k_end, begin + room.keys));

  Carry<kFours, kHeads> carry;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    carry.max[h] = -INFINITY, carry.sum[h] = 0;
#pragma unroll
    for (int c = 0; c < kFours; ++c) carry.o[h][c] = {0, 0, 0, 0};
  }
  int kv_heads[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) kv_heads[h] = h < heads ? a.kv_index[head + h] : -1;
  unsigned begins = 1u << heads;  // bit h: a run of heads begins at h, or ends before
#pragma unroll
  for (int h = 1; h < kHeads; ++h) begins |= unsigned(kv_heads[h] != kv_heads[h - 1]) << h;
  for (int from = 0; from < heads;) {
    const int to = from + __ffs(int(begins >> (from + 1)));
    AttendRun<E, kFours, kHeads, kKeys, kVector>(a, token, head, from, to, seen, carry);
    from = to;
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int c = 0; c < kFours; ++c) {
      *reinterpret_cast<float4*>(&team_o[team][h][c * 32 + lane * 4]) = carry.o[h][c];
    }
    if (lane == 0) team_max[h][team] = carry.max[h], team_sum[h][team] = carry.sum[h];
  }
  __syncthreads();  // waits for every team's result

  const int dim = int(a.head_dim);
  const int64_t row = (part * gridDim.z + token) * a.heads + head;
  if (threadIdx.x < CeilDiv(kHeads * kTeams, kWarp) * kWarp) {  // a thread per team and head
    const int h = int(threadIdx.x) / kTeams, t = int(threadIdx.x) % kTeams;
    const float own = h < kHeads ? team_max[h][t] : -INFINITY;
    float highest = own;
    for (int i = kTeams / 2; i > 0; i /= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, i));
    }
    const float weight = own > -INFINITY ? expf(own - highest) : 0.0f;
    float total = h < kHeads ? team_sum[h][t] * weight : 0.0f;
    for (int i = kTeams / 2; i > 0; i /= 2) total += __shfl_xor_sync(kAllLanes, total, i);
    if (h < kHeads) team_sum[h][t] = total > 0 ? weight / total : 0.0f;
    if (h < heads && t == 0) room.lse[row + h] = total > 0 ? highest + logf(total) : -INFINITY;
  }
  __syncthreads();  // waits for the teams' weights
  for (int i = threadIdx.x; i < heads * dim; i += kThreads) {
    const int h = i / dim, d = i % dim;
    float value = 0;
#pragma unroll
    for (int t = 0; t < kTeams; ++t) value += team_o[t][h][d] * team_sum[h][t];
    room.o[row * dim + i] = value;
  }
  if (room.arrived == nullptr) return;
  __threadfence();  // what this thread wrote is seen before it is counted
  __syncthreads();  // waits for every thread's writing
  if (threadIdx.x == 0) {
    int32_t* arrived = room.arrived + token * gridDim.y + blockIdx.y;
    is_last = atomicAdd(arrived, 1) == int32_t(gridDim.x) - 1;
    if (is_last) *arrived = 0;
  }
  __syncthreads();  // waits for the count
  if (!is_last) return;
  __threadfence();  // and what others wrote before they were counted is read after
  MergeParts<int(CeilDiv(kHeads * kFours * 32, kThreads))>(a, room, token, head, heads);
}

template <typename E, int kFours, int kHeads, int kKeys, bool kVector>
void Attend(CudaStream s, const AttentionArgs<float>& a, void* workspace, int64_t workspace_bytes,
            int32_t* counters, bool overlap) {
  // Parts by shape alone: what a large device holds at once, but 32 keys at least to each.
  constexpr int64_t kBlocks = 128 * BlocksAtOnce(kFours), kFewestKeys = 32;
  const int64_t rows = a.q_count * a.heads, groups = CeilDiv(a.heads, kHeads);
  const int64_t room = workspace_bytes / (rows * (a.head_dim + 1) * 4);
  const int64_t wanted = std::min(
      {CeilDiv(kBlocks, a.q_count * groups), CeilDiv(a.k_count, kFewestKeys), int64_t{kMostParts}});
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, room));
  const bool merges = a.q_count * groups <= kNarrowCounters;
  float* o_parts = static_cast<float*>(workspace);
  float* lse_parts = o_parts + parts * rows * a.head_dim;
  const PartRoom part_room{CeilDiv(a.k_count, parts), o_parts, lse_parts,
                           merges ? counters : nullptr};
  const dim3 grid{unsigned(parts), unsigned(groups), unsigned(a.q_count)};
  LaunchOverlapped(overlap, s, grid, dim3(kThreads),
                   NarrowKernel<E, kFours, kHeads, kKeys, kVector>, a, part_room);
  if (merges) return;
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
                  int64_t workspace_bytes, int32_t* counters, bool overlap) {
  const int64_t part_bytes = args.q_count * args.heads * (args.head_dim + 1) * 4;
  if (args.q_count >= kNarrowQueries || args.head_dim > kNarrowHeadDim ||
      part_bytes > workspace_bytes) {
    return false;
  }
  // How many query heads read a KV head, where all KV heads lie in a row of K: for speed alone.
  const int64_t sharing = args.heads * args.head_dim / std::max<int64_t>(args.k_stride, 1);
  WithKvType(args, [&]<typename E>(E, auto vector) {
    const auto attend = [&]<int kFours, int kHeads, int kKeys>() {
      Attend<E, kFours, kHeads, kKeys, decltype(vector)::value>(s, args, workspace, workspace_bytes,
                                                                counters, overlap);
    };
    const bool together = decltype(vector)::value && sharing > 1;
    if (args.head_dim <= 64) {
      together ? attend.template operator()<2, 4, 2>() : attend.template operator()<2, 1, 2>();
    } else if (args.head_dim <= 128) {
      together ? attend.template operator()<4, 4, 2>() : attend.template operator()<4, 1, 2>();
    } else {
      together ? attend.template operator()<8, 2, 1>() : attend.template operator()<8, 1, 1>();
    }
  });
  return true;
}

}  // namespace toroid
