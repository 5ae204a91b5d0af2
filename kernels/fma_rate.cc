#include "kernels/fma_rate.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/isa.h"

namespace toroid {
namespace {

// Independent sums: two units of latency four or five need eight or ten.
constexpr int kChains = 10;
constexpr int64_t kSteps = 1 << 17;  // of a piece: a fraction of a millisecond
constexpr int kPieces = 4;           // of each thread in a run
constexpr int kLeastRuns = 7;

// `steps` times kChains multiply-adds; the sum is returned so that nothing is left out. x' = 0.5 x
// + 1 stays an ordinary number.
float FmaScalar(int64_t steps) {
  typedef float V __attribute__((vector_size(16)));  // what x86-64 code has without any flag
  V sums[kChains];
  for (int j = 0; j < kChains; ++j) sums[j] = V{} + float(j);  // equal chains would become one
  const V half = {0.5f, 0.5f, 0.5f, 0.5f}, one = {1, 1, 1, 1};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 10
    for (V& sum : sums) sum = sum * half + one;
  }
  float total = 0;
  for (const V& sum : sums) total += sum[0];
  return total;
}

__attribute__((target("avx2,fma"))) float FmaAvx2(int64_t steps) {
  __m256 sums[kChains];
  for (int j = 0; j < kChains; ++j) sums[j] = _mm256_set1_ps(float(j));
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 10
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, half, one);
  }
  float total = 0;
  for (const __m256& sum : sums) total += _mm256_cvtss_f32(sum);
  return total;
}

__attribute__((target("avx512f"))) float FmaAvx512(int64_t steps) {
  __m512 sums[kChains];
  for (int j = 0; j < kChains; ++j) sums[j] = _mm512_set1_ps(float(j));
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 10
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, half, one);
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}

}  // namespace

// The best of some: a bound is what the machine can do, not what it did while others ran. It takes
// the scheduler a while to move new threads to cores of their own, so few runs may all be late.
double BestFmaRate(ThreadPool& pool, double seconds, const std::function<double()>& clock) {
  const Isa isa = CurrentIsa();
  const int64_t lanes = isa == Isa::kAvx512 ? 16 : isa == Isa::kAvx2 ? 8 : 4;
  const int64_t pieces = kPieces * int64_t{pool.threads()};
  std::vector<float> sums(size_t(pool.threads()));
  double best = std::numeric_limits<double>::infinity(), spent = 0;
  for (int run = 0; run <= kLeastRuns || spent < seconds; ++run) {
    const double begin = clock();
    pool.ParallelFor(pieces, 1, [&](int64_t, int64_t, int worker) {
      sums[size_t(worker)] += isa == Isa::kAvx512 ? FmaAvx512(kSteps)
                              : isa == Isa::kAvx2 ? FmaAvx2(kSteps)
                                                  : FmaScalar(kSteps);
    });
    const double took = clock() - begin;
    if (run > 0) best = std::min(best, took);  // the first one wakes the threads
    spent += took;
  }
  volatile float used = 0;  // else nothing would have to be computed
  for (const float sum : sums) used = used + sum;
  return 2 * double(pieces * kSteps * kChains * lanes) / best;
}

}  // namespace toroid
