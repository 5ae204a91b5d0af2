#include <cmath>
#include <limits>

#include "kernels/attention_merge.h"

namespace toroid {

namespace {

template <typename T>
void MergeRow(const MergeArgs<T>& a, int64_t row) {
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  const int64_t token = row / a.heads, head = row % a.heads;
  T* o = a.o + token * a.o_stride + head * a.dim;
  T* carry = a.carry ? a.lse + token * a.lse_stride + head : nullptr;
  T max = carry ? *carry : kNone;
  for (int64_t i = 0; i < a.parts; ++i) {
    max = std::fmax(max, a.lse_parts[i * a.lse_part_stride + row]);
  }
  if (max == kNone) {
    if (carry) return;
    for (int64_t d = 0; d < a.dim; ++d) o[d] = 0;
    if (a.lse) a.lse[token * a.lse_stride + head] = kNone;
    return;
  }
  T sum = carry ? std::exp(*carry - max) : T(0);
  for (int64_t i = 0; i < a.parts; ++i) {
    sum += std::exp(a.lse_parts[i * a.lse_part_stride + row] - max);
  }
  const T lse = max + std::log(sum);
  const T first = carry ? std::exp(*carry - lse) : T(0);
  for (int64_t d = 0; d < a.dim; ++d) o[d] = carry ? o[d] * first : T(0);
  for (int64_t i = 0; i < a.parts; ++i) {
    const T weight = std::exp(a.lse_parts[i * a.lse_part_stride + row] - lse);
    if (weight == 0) continue;
    const T* part = a.o_parts + i * a.o_part_stride + row * a.dim;
    for (int64_t d = 0; d < a.dim; ++d) o[d] += weight * part[d];
  }
  if (a.lse) a.lse[token * a.lse_stride + head] = lse;
}

template <typename T>
void Merge(ThreadPool& pool, const MergeArgs<T>& args) {
  pool.ParallelFor(args.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) MergeRow(args, row);
  });
}

}  // namespace

void AttentionMerge(ThreadPool& pool, const MergeArgs<float>& args) { Merge(pool, args); }
void AttentionMerge(ThreadPool& pool, const MergeArgs<double>& args) { Merge(pool, args); }

}  // namespace toroid
