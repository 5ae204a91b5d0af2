#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cross_entropy.h"
#include "kernels/pieces.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

double RowMax(const float* x, int64_t n) { return CurrentRowKernels().max(x, n); }
double RowMax(const double* x, int64_t n) { return *std::max_element(x, x + n); }

double RowExpSum(const float* x, double max, int64_t n) {
  return CurrentRowKernels().exp_sum(x, float(max), n);
}
double RowExpSum(const double* x, double max, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - max);
  return sum;
}

// out = factor e^(x - shift). Float: what the rounding of shift loses goes into the factor.
void RowExpScaled(const float* x, double shift, double factor, float* out, int64_t n) {
  const float rounded = float(shift);
  const double rest = std::exp(double(rounded) - shift);
  CurrentRowKernels().exp_scaled(x, rounded, float(factor * rest), out, n);
}
void RowExpScaled(const double* x, double shift, double factor, double* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = factor * std::exp(x[i] - shift);
}

// (max, sum) += (other_max, other_sum)
void Fold(double* max, double* sum, double other_max, double other_sum) {
  if (other_max == kNone) return;
  const double both = std::max(*max, other_max);
  const double kept = *max == kNone ? 0.0 : *sum * std::exp(*max - both);
  *sum = kept + other_sum * std::exp(other_max - both);
  *max = both;
}

}  // namespace

template <typename T>
void VocabStatistics(ThreadPool& pool, const T* logits, int64_t stride, int64_t t, int64_t n,
                     int64_t vocab_begin, const int32_t* labels, double* stat) {
  if (n == 0) return;
  pool.ParallelFor(t, 1, [&](int64_t i, int64_t, int) {
    const T* row = logits + i * stride;
    double* s = stat + i * 3;
    const double max = RowMax(row, n);
    Fold(&s[0], &s[1], max, max == kNone ? 0.0 : RowExpSum(row, max, n));
    const int64_t label = labels[i] - vocab_begin;
    if (label >= 0 && label < n) s[2] = double(row[label]);
  });
}

void VocabMerge(ThreadPool& pool, const double* parts, int64_t n, int64_t t, double* log_p,
                double* log_z) {
  pool.ParallelFor(t, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      double max = kNone, sum = 0, label = kNone;
      for (int64_t part = 0; part < n; ++part) {
        const double* s = parts + (part * t + i) * 3;
        Fold(&max, &sum, s[0], s[1]);
        label = std::max(label, s[2]);
      }
      log_z[i] = max == kNone ? kNone : max + std::log(sum);
      log_p[i] = label == kNone ? kNone : label - log_z[i];
    }
  });
}

template <typename T>
void VocabBackward(ThreadPool& pool, const T* logits, int64_t stride, int64_t t, int64_t n,
                   int64_t vocab_begin, const int32_t* labels, const double* log_z,
                   const double* d_log_p, const double* d_log_z, T* dlogits,
                   int64_t dlogits_stride) {
  ForPieces(pool, t, n, [&](int64_t i, int64_t col, int64_t count) {
    T* out = dlogits + i * dlogits_stride + col;
    // log Z = ln sum_j e^logit_j  and  log p = label's logit - log Z
    RowExpScaled(logits + i * stride + col, log_z[i], d_log_z[i] - d_log_p[i], out, count);
    const int64_t label = labels[i] - vocab_begin - col;
    if (label >= 0 && label < count) out[label] += T(d_log_p[i]);
  });
}

void LossBackward(ThreadPool& pool, const int32_t* labels, const double* weights, double zeta,
                  const double* log_z, int64_t t, double* d_log_p, double* d_log_z) {
  pool.ParallelFor(t, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const double weight = labels[i] < 0 ? 0.0 : weights[i];
      d_log_p[i] = -weight;
      d_log_z[i] = 2 * zeta * weight * log_z[i];
    }
  });
}

template void VocabBackward(ThreadPool&, const float*, int64_t, int64_t, int64_t, int64_t,
                            const int32_t*, const double*, const double*, const double*, float*,
                            int64_t);
template void VocabBackward(ThreadPool&, const double*, int64_t, int64_t, int64_t, int64_t,
                            const int32_t*, const double*, const double*, const double*, double*,
                            int64_t);
template void VocabStatistics(ThreadPool&, const float*, int64_t, int64_t, int64_t, int64_t,
                              const int32_t*, double*);
template void VocabStatistics(ThreadPool&, const double*, int64_t, int64_t, int64_t, int64_t,
                              const int32_t*, double*);

}  // namespace toroid
