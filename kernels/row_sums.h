// Sums along rows and over rows for the backward of norms, in an order that shapes alone decide.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/thread_pool.h"

namespace toroid {

// Sum of term(i), i in [0, n), in double over eight running sums of T.
template <typename T, typename Term>
double SumOver(int64_t n, Term term) {
  T sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += term(i + j);
  }
  double total = 0;
  for (; i < n; ++i) total += double(term(i));
  for (T part : sum) total += double(part);
  return total;
}

// Calls row(r, partial) for each row, which adds what row r gives to the N sums of `dim` columns at
// `partial`, one behind the other; then adds the sums of all rows to out[0 .. N), each [dim] or
// null. Rows come in blocks of 32 that share a partial; partials, in the pool's shared scratch, are
// added in order. N dim sizeof(T) <= ThreadPool::kScratchBytes.
template <typename T, int N, typename Row>
void SumOverRows(ThreadPool& pool, int64_t rows, int64_t dim, std::array<T*, N> out, Row row) {
  constexpr int64_t kRows = 32;
  const int64_t cols = N * dim;
  if (rows <= 0 || dim <= 0) return;
  T* partials = static_cast<T*>(pool.shared_scratch());
  const int64_t fit = ThreadPool::kScratchBytes / (cols * static_cast<int64_t>(sizeof(T)));
  for (int64_t first = 0; first < rows; first += fit * kRows) {
    const int64_t count = std::min(rows - first, fit * kRows);
    pool.ParallelFor(count, kRows, [&](int64_t begin, int64_t end, int) {
      T* partial = partials + begin / kRows * cols;
      std::fill_n(partial, cols, T(0));
      for (int64_t r = begin; r < end; ++r) row(first + r, partial);
    });
    const int64_t blocks = (count + kRows - 1) / kRows;
    pool.ParallelFor(cols, 256, [&](int64_t begin, int64_t end, int) {
      for (int64_t c = begin; c < end; ++c) {
        T* to = out[c / dim];
        if (to == nullptr) continue;
        double sum = 0;
        for (int64_t b = 0; b < blocks; ++b) sum += double(partials[b * cols + c]);
        to[c % dim] += T(sum);
      }
    });
  }
}

}  // namespace toroid
