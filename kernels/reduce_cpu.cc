#include <algorithm>

#include "kernels/reduce.h"

namespace toroid {

namespace {

template <typename T>
double SquaredSum(const T* x, int64_t n) {
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += double(x[i + j]) * double(x[i + j]);
  }
  for (; i < n; ++i) sum[0] += double(x[i]) * double(x[i]);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace

// Chunks of kChunk numbers leave their sums in the shared scratch, where they are added in order.
template <typename T>
void AddSquaredSum(ThreadPool& pool, const T* x, int64_t n, double* sum) {
  constexpr int64_t kChunk = 16384;
  constexpr int64_t kRound = ThreadPool::kScratchBytes / int64_t{sizeof(double)} * kChunk;
  double* parts = static_cast<double*>(pool.shared_scratch());
  double total = 0;
  for (int64_t first = 0; first < n; first += kRound) {
    const int64_t count = std::min(n - first, kRound);
    pool.ParallelFor(count, kChunk, [&](int64_t begin, int64_t end, int) {
      parts[begin / kChunk] = SquaredSum(x + first + begin, end - begin);
    });
    for (int64_t i = 0; i < (count + kChunk - 1) / kChunk; ++i) total += parts[i];
  }
  *sum += total;
}

template void AddSquaredSum(ThreadPool&, const float*, int64_t, double*);
template void AddSquaredSum(ThreadPool&, const double*, int64_t, double*);

}  // namespace toroid
