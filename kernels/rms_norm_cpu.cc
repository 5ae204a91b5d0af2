#include <cmath>

#include "kernels/rms_norm.h"
#include "kernels/row_kernels.h"
#include "kernels/row_sums.h"

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

// One row, quoting NormRow; `dgain` of this row is added to.
template <typename T, typename G>
void NormRowBackward(const T* x, int64_t dim, const G* gain, double epsilon, const T* dout, T* dx,
                     T* dgain) {
  // inverse = 1 / sqrt(mean(x^2) + epsilon)  ->  dinverse / dx_i = -inverse^3 x_i / dim
  const double inverse = 1.0 / std::sqrt(double(SumSquares(x, dim)) / double(dim) + epsilon);
  const double dinverse = SumOver<T>(dim, [&](int64_t i) { return dout[i] * x[i] * T(gain[i]); });
  const T r = T(inverse), along = T(-inverse * inverse * inverse * dinverse / double(dim));
  for (int64_t i = 0; i < dim; ++i) {
    // out[i] = x[i] * inverse * gain[i]
    const T d = dout[i];
    dgain[i] += d * x[i] * r;
    dx[i] = d * T(gain[i]) * r + x[i] * along;
  }
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

template <typename T>
void RmsNormBackward(ThreadPool& pool, const T* x, int64_t x_stride, int64_t outer, int64_t inner,
                     int64_t dim, DType gain_type, const void* gain, double epsilon, const T* dout,
                     int64_t dout_stride, T* dx, int64_t dx_stride, T* dgain) {
  const auto backward = [&](int64_t row, T* partial) {
    const int64_t i = row / inner, j = row % inner * dim;
    const T *from = x + i * x_stride + j, *d = dout + i * dout_stride + j;
    T* to = dx + i * dx_stride + j;
    if (gain_type == DType::kF64) {
      NormRowBackward(from, dim, static_cast<const double*>(gain), epsilon, d, to, partial);
    } else {
      NormRowBackward(from, dim, static_cast<const float*>(gain), epsilon, d, to, partial);
    }
  };
  SumOverRows<T, 1>(pool, outer * inner, dim, {dgain}, backward);
}

template void RmsNormBackward(ThreadPool&, const float*, int64_t, int64_t, int64_t, int64_t, DType,
                              const void*, double, const float*, int64_t, float*, int64_t, float*);
template void RmsNormBackward(ThreadPool&, const double*, int64_t, int64_t, int64_t, int64_t, DType,
                              const void*, double, const double*, int64_t, double*, int64_t,
                              double*);
template void RmsNorm(ThreadPool&, const float*, int64_t, int64_t, int64_t, int64_t, DType,
                      const void*, double, float*, int64_t);
template void RmsNorm(ThreadPool&, const double*, int64_t, int64_t, int64_t, int64_t, DType,
                      const void*, double, double*, int64_t);

}  // namespace toroid
