// Inputs of attention's tests, and one call of the kernel on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/attention.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {

// The t queries are the last of n positions, the KV heads are spread evenly.
inline reference::AttentionInput RandomInput(int64_t t, int64_t n, int64_t heads, int64_t kv_heads,
                                             int64_t head_dim, uint64_t seed = 1) {
  reference::AttentionInput in;
  in.heads = heads, in.kv_heads = kv_heads, in.head_dim = head_dim;
  for (int64_t h = 0; h < heads; ++h) in.kv_index.push_back(int32_t(h * kv_heads / heads));
  in.q_positions.resize(t);
  in.k_positions.resize(n);
  std::iota(in.q_positions.begin(), in.q_positions.end(), int32_t(std::max<int64_t>(n - t, 0)));
  std::iota(in.k_positions.begin(), in.k_positions.end(), 0);
  in.q_thK = RandomArray(t * heads * head_dim, seed);
  in.k_ngK = RandomArray(n * kv_heads * head_dim, seed + 1);
  in.v_ngK = RandomArray(n * kv_heads * head_dim, seed + 2);
  in.scale = float(1 / std::sqrt(double(head_dim)));
  return in;
}

template <typename T>
struct Carry {
  std::vector<T> o, lse;
  explicit Carry(const reference::AttentionInput& in)
      : o(in.q_thK.size()),
        lse(in.q_positions.size() * in.heads, -std::numeric_limits<T>::infinity()) {}
};

// The arrays of one call in the kernel's types; `args` points into them.
template <typename T>
struct Call {
  std::vector<T> q, k, v;
  AttentionArgs<T> args;
  Call(const reference::AttentionInput& in, Carry<T>* carry)
      : q(As<T>(in.q_thK)), k(As<T>(in.k_ngK)), v(As<T>(in.v_ngK)) {
    args.q = q.data(), args.q_stride = in.heads * in.head_dim;
    args.q_positions = in.q_positions.data();
    args.k = k.data(), args.v = v.data();
    args.kv_type = sizeof(T) == 8 ? DType::kF64 : DType::kF32;
    args.k_stride = args.v_stride = in.kv_heads * in.head_dim;
    args.k_positions = in.k_positions.data(), args.kv_index = in.kv_index.data();
    args.heads = in.heads, args.head_dim = in.head_dim;
    args.q_count = int64_t(in.q_positions.size()), args.k_count = int64_t(in.k_positions.size());
    args.causal = in.causal, args.window = in.window, args.scale = in.scale;
    args.o = carry->o.data(), args.o_stride = args.q_stride;
    args.lse = carry->lse.data(), args.lse_stride = in.heads;
  }
};

}  // namespace toroid
