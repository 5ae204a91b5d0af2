#include <cmath>

#include "kernels/rms_norm.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

float SumSquares(const float* x, int64_t n) { return CurrentRowKernels().sum_squares(x, n); }

double SumSquares(const double* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

template <typename T, typename G>
void NormRow(const T* x, int64_t dim, const G* gain, double epsilon, T* out) {
  const T inverse = T(1.0 / std::sqrt(double(SumSquares(x, dim)) / double(dim) + epsilon));
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] * inverse * T(gain[i]);
}

}  // namespace

template <typename T>
void RmsNorm(ThreadPool& pool, const T* x, int64_t x_stride, int64_t outer, int64_t inner,
             int64_t dim, DType gain_type, const void* gain, double epsilon, T* out,
             int64_t out_stride) {
  pool.ParallelFor(outer, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < inner; ++j) {
        const T* from = x + i * x_stride + j * dim;
        T* to = out + i * out_stride + j * dim;
        if (gain_type == DType::kF64) {
          NormRow(from, dim, static_cast<const double*>(gain), epsilon, to);
        } else {
          NormRow(from, dim, static_cast<const float*>(gain), epsilon, to);
        }
      }
    }
  });
}

template void RmsNorm(ThreadPool&, const float*, int64_t, int64_t, int64_t, int64_t, DType,
                      const void*, double, float*, int64_t);
template void RmsNorm(ThreadPool&, const double*, int64_t, int64_t, int64_t, int64_t, DType,
                      const void*, double, double*, int64_t);

}  // namespace toroid
