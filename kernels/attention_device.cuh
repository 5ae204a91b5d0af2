// Which keys a query sees, where they lie, and how CUDA's attention kernels read them. Included by
// kernel files alone.
#pragma once

#include "kernels/attention.h"
#include "kernels/device.cuh"

namespace toroid {

// Few queries of each head (decode): cuts the keys into parts and merges them, as AttendTile. False
// if the shape is not for it, or the workspace too small.
bool AttendNarrow(CudaStream s, const AttentionArgs<float>& args, void* workspace,
                  int64_t workspace_bytes, int32_t* counters, bool overlap);

namespace {

struct KeyRange {
  int64_t begin, end;
};

// First key in [begin, end) whose position is > bound.
__device__ inline int64_t UpperBound(const int32_t* positions, int64_t begin, int64_t end,
                                     int64_t bound) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (positions[middle] > bound) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// The keys in [begin, end) that a query sees; positions ascend.
__device__ inline KeyRange VisibleKeys(const AttentionArgs<float>& a, int64_t query, int64_t begin,
                                       int64_t end) {
  if (a.length != nullptr && *a.length < end) end = *a.length;
  if (end < begin) end = begin;
  const int64_t position = a.q_positions[query];
  KeyRange seen = {begin, end};
  if (a.window > 0) seen.begin = UpperBound(a.k_positions, begin, end, position - a.window);
  // A step of decoding sees all keys: one reading says so, where the search takes one behind the
  // other.
  if (a.causal && begin < end && a.k_positions[end - 1] > position) {
    seen.end = UpperBound(a.k_positions, begin, end, position);
  }
  return seen;
}

__device__ inline int64_t PhysicalRow(const AttentionArgs<float>& a, int64_t key) {
  if (a.page_table == nullptr) return key;
  return int64_t{a.page_table[key / a.page_tokens]} * a.page_tokens + key % a.page_tokens;
}

__device__ inline float4 LoadFour(const float* x) { return *reinterpret_cast<const float4*>(x); }
__device__ inline float4 LoadFour(const __nv_bfloat16* x) {
  alignas(8) __nv_bfloat16 four[4];
  *reinterpret_cast<uint2*>(four) = *reinterpret_cast<const uint2*>(x);
  return {Widen(four[0]), Widen(four[1]), Widen(four[2]), Widen(four[3])};
}
// Elements [d, d + 4) of a head, zeros past its end. kVector: heads are multiples of 4 elements and
// start where four of them can be read at once.
template <bool kVector, typename E>
__device__ inline float4 LoadFour(const E* head, int64_t d, int64_t head_dim) {
  if constexpr (kVector) {
    if (d < head_dim) return LoadFour(head + d);
    return {0, 0, 0, 0};
  } else {
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = d + i < head_dim ? Widen(head[d + i]) : 0.0f;
    return {four[0], four[1], four[2], four[3]};
  }
}

__device__ inline float Dot(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// True if four elements of a head can be read at once, wherever it starts.
inline bool FoursAlign(const AttentionArgs<float>& a) {
  const auto aligned = [](const void* data, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  };
  const uintptr_t kv_bytes = 4 * uintptr_t(Info(a.kv_type).bytes);
  return a.head_dim % 4 == 0 && a.q_stride % 4 == 0 && a.k_stride % 4 == 0 && a.v_stride % 4 == 0 &&
         aligned(a.q, 16) && aligned(a.k, kv_bytes) && aligned(a.v, kv_bytes);
}

// body(E(), bool constant): E as keys and values are stored, and whether FoursAlign.
template <typename Body>
void WithKvType(const AttentionArgs<float>& a, Body body) {
  const auto with = [&](auto element) {
    FoursAlign(a) ? body(element, std::true_type()) : body(element, std::false_type());
  };
  a.kv_type == DType::kBF16 ? with(__nv_bfloat16()) : with(float());
}

}  // namespace
}  // namespace toroid
