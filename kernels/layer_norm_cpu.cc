#include <cmath>

#include "kernels/layer_norm.h"
#include "kernels/row_sums.h"

namespace toroid {

namespace {

struct Moments {
  double mean, inverse;  // 1 / sqrt(variance + epsilon)
};

// The variance is taken about the mean: of x = 1000 +- 1 nothing is lost.
template <typename T>
Moments RowMoments(const T* x, int64_t dim, double epsilon) {
  const double mean = SumOver<T>(dim, [&](int64_t i) { return x[i]; }) / double(dim);
  const T centre = T(mean);
  const double shift = mean - double(centre);
  const double squares =
      SumOver<T>(dim, [&](int64_t i) { return (x[i] - centre) * (x[i] - centre); });
  const double variance = squares / double(dim) - shift * shift;
  return {mean, 1.0 / std::sqrt(std::fmax(variance, 0.0) + epsilon)};
}

template <typename T, typename G>
void NormRow(const T* x, int64_t dim, const G* gain, const G* bias, double epsilon, T* out) {
  const Moments moments = RowMoments(x, dim, epsilon);
  const T mean = T(moments.mean), inverse = T(moments.inverse);
  for (int64_t i = 0; i < dim; ++i) {
    out[i] = (x[i] - mean) * inverse * T(gain[i]) + (bias ? T(bias[i]) : T(0));
  }
}

// One row, quoting NormRow; this row's dgain and dbias are added to.
template <typename T, typename G>
void NormRowBackward(const T* x, int64_t dim, const G* gain, double epsilon, const T* dout, T* dx,
                     T* dgain, T* dbias) {
  const Moments moments = RowMoments(x, dim, epsilon);
  const T mean = T(moments.mean), inverse = T(moments.inverse);
  // n = (x - mean) inverse: mean owes -mean(dn), inverse owes -n mean(dn n), both times inverse.
  const double along_mean =
      SumOver<T>(dim, [&](int64_t i) { return dout[i] * T(gain[i]); }) / double(dim);
  const double along_n =
      SumOver<T>(dim, [&](int64_t i) { return dout[i] * T(gain[i]) * ((x[i] - mean) * inverse); }) /
      double(dim);
  for (int64_t i = 0; i < dim; ++i) {
    // out[i] = n gain[i] + bias[i]
    const T n = (x[i] - mean) * inverse, d = dout[i];
    dgain[i] += d * n;
    dbias[i] += d;
    dx[i] = inverse * (d * T(gain[i]) - T(along_mean) - n * T(along_n));
  }
}

}  // namespace

template <typename T>
void LayerNorm(ThreadPool& pool, const T* x, int64_t x_stride, int64_t rows, int64_t dim,
               DType gain_type, const void* gain, const void* bias, double epsilon, T* out,
               int64_t out_stride) {
  pool.ParallelFor(rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T* from = x + i * x_stride;
      T* to = out + i * out_stride;
      if (gain_type == DType::kF64) {
        NormRow(from, dim, static_cast<const double*>(gain), static_cast<const double*>(bias),
                epsilon, to);
      } else {
        NormRow(from, dim, static_cast<const float*>(gain), static_cast<const float*>(bias),
                epsilon, to);
      }
    }
  });
}

template <typename T>
void LayerNormBackward(ThreadPool& pool, const T* x, int64_t x_stride, int64_t rows, int64_t dim,
                       DType gain_type, const void* gain, double epsilon, const T* dout,
                       int64_t dout_stride, T* dx, int64_t dx_stride, T* dgain, T* dbias) {
  const auto backward = [&](int64_t i, T* partial) {
    const T *from = x + i * x_stride, *d = dout + i * dout_stride;
    T* to = dx + i * dx_stride;
    if (gain_type == DType::kF64) {
      NormRowBackward(from, dim, static_cast<const double*>(gain), epsilon, d, to, partial,
                      partial + dim);
    } else {
      NormRowBackward(from, dim, static_cast<const float*>(gain), epsilon, d, to, partial,
                      partial + dim);
    }
  };
  SumOverRows<T, 2>(pool, rows, dim, {dgain, dbias}, backward);
}

template void LayerNorm(ThreadPool&, const float*, int64_t, int64_t, int64_t, DType, const void*,
                        const void*, double, float*, int64_t);
template void LayerNorm(ThreadPool&, const double*, int64_t, int64_t, int64_t, DType, const void*,
                        const void*, double, double*, int64_t);
template void LayerNormBackward(ThreadPool&, const float*, int64_t, int64_t, int64_t, DType,
                                const void*, double, const float*, int64_t, float*, int64_t, float*,
                                float*);
template void LayerNormBackward(ThreadPool&, const double*, int64_t, int64_t, int64_t, DType,
                                const void*, double, const double*, int64_t, double*, int64_t,
                                double*, double*);

}  // namespace toroid
