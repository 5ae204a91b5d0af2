#include <algorithm>

#include "kernels/attention_backward_kernel.h"
#include "kernels/isa.h"
#include "kernels/row_sums.h"

namespace toroid {

namespace {

AttentionBackwardKernel<float> Kernel(float) {
  switch (CurrentIsa()) {
    case Isa::kAvx512:
      return AttentionBackwardAvx512();
    case Isa::kAvx2:
      return AttentionBackwardAvx2();
    case Isa::kScalar:
      break;
  }
  return AttendBlockBackward<float, 4>;
}

AttentionBackwardKernel<double> Kernel(double) { return AttendBlockBackward<double, 2>; }

// A block adds to the dq of its queries and to the dk and dv of its keys, so blocks of one KV head
// may run side by side only if they share neither. Queries and keys are cut into as many ranges;
// in step s the blocks (query range j + s, key range j) run, all j at once: every pair is met once
// and every sum is made in one order, whatever the threads.
template <typename T>
void Backward(ThreadPool& pool, const AttentionBackwardArgs<T>& args) {
  constexpr int64_t kWantedBlocks = 32, kLeastRange = 128;
  const AttentionArgs<T>& a = args.forward;
  if (a.q_count <= 0 || a.k_count <= 0 || a.heads <= 0 || args.kv_heads <= 0) return;
  const int64_t wanted = (kWantedBlocks + args.kv_heads - 1) / args.kv_heads;
  const int64_t ranges =
      std::clamp<int64_t>(std::max(a.q_count, a.k_count) / kLeastRange, 1, wanted);
  const int64_t q_range = (a.q_count + ranges - 1) / ranges;
  const int64_t k_range =
      ((a.k_count + ranges - 1) / ranges + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  const int64_t q_end = a.q_begin + a.q_count, k_end = a.k_begin + a.k_count;
  const AttentionBackwardKernel<T> kernel = Kernel(T(0));
  for (int64_t step = 0; step < ranges; ++step) {
    pool.ParallelFor(ranges * args.kv_heads, 1, [&](int64_t item, int64_t, int worker) {
      const int64_t keys = item / args.kv_heads, queries = (keys + step) % ranges;
      AttentionBackwardBlock block;
      block.kv_head = item % args.kv_heads;
      block.token_begin = a.q_begin + queries * q_range;
      block.token_count = std::min(q_range, q_end - block.token_begin);
      block.key_begin = a.k_begin + keys * k_range;
      block.key_end = std::min(k_end, block.key_begin + k_range);
      if (block.token_count <= 0 || block.key_begin >= block.key_end) return;
      kernel(args, block, pool.scratch(worker));
    });
  }
}

}  // namespace

void AttendTileBackward(ThreadPool& pool, const AttentionBackwardArgs<float>& args) {
  Backward(pool, args);
}
void AttendTileBackward(ThreadPool& pool, const AttentionBackwardArgs<double>& args) {
  Backward(pool, args);
}

template <typename T>
void AttentionDelta(ThreadPool& pool, const T* o, int64_t o_stride, const T* d_o, int64_t do_stride,
                    int64_t t, int64_t heads, int64_t head_dim, T* delta, int64_t delta_stride) {
  pool.ParallelFor(t, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        const T *x = o + i * o_stride + h * head_dim, *dx = d_o + i * do_stride + h * head_dim;
        delta[i * delta_stride + h] =
            T(SumOver<T>(head_dim, [&](int64_t d) { return x[d] * dx[d]; }));
      }
    }
  });
}

template void AttentionDelta(ThreadPool&, const float*, int64_t, const float*, int64_t, int64_t,
                             int64_t, int64_t, float*, int64_t);
template void AttentionDelta(ThreadPool&, const double*, int64_t, const double*, int64_t, int64_t,
                             int64_t, int64_t, double*, int64_t);

}  // namespace toroid
