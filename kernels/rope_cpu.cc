#include <cmath>

#include "kernels/rope.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

void Rotation(double position, const double* inv_freq, double scale, int64_t n, double* cosine,
              double* sine) {
  for (int64_t i = 0; i < n; ++i) {
    const double angle = position * inv_freq[i];
    cosine[i] = std::cos(angle) * scale;
    sine[i] = std::sin(angle) * scale;
  }
}
void Rotation(double position, const double* inv_freq, double scale, int64_t n, float* cosine,
              float* sine) {
  CurrentRowKernels().rotation(position, inv_freq, scale, n, cosine, sine);
}

// direction 1 turns by position * inv_freq, -1 turns back.
template <typename T>
void Turn(ThreadPool& pool, T* x, int64_t stride, int64_t t, int64_t heads, int64_t head_dim,
          const int32_t* positions, const double* inv_freq, double scale, T direction) {
  const int64_t half = head_dim / 2;
  pool.ParallelFor(t, 8, [&](int64_t begin, int64_t end, int worker) {
    T* cosine = static_cast<T*>(pool.scratch(worker));
    T* sine = cosine + half;
    for (int64_t i = begin; i < end; ++i) {
      Rotation(positions[i], inv_freq, scale, half, cosine, sine);
      for (int64_t d = 0; d < half; ++d) sine[d] *= direction;
      for (int64_t h = 0; h < heads; ++h) {
        T* low = x + i * stride + h * head_dim;
        T* high = low + half;
        for (int64_t d = 0; d < half; ++d) {
          const T a = low[d], b = high[d];
          low[d] = a * cosine[d] - b * sine[d];
          high[d] = b * cosine[d] + a * sine[d];
        }
      }
    }
  });
}

}  // namespace

template <typename T>
void Rope(ThreadPool& pool, T* x, int64_t stride, int64_t t, int64_t heads, int64_t head_dim,
          const int32_t* positions, const double* inv_freq, double scale) {
  Turn(pool, x, stride, t, heads, head_dim, positions, inv_freq, scale, T(1));
}

// low' = low cos - high sin    ->  dlow  = dlow' cos + dhigh' sin
// high' = high cos + low sin   ->  dhigh = dhigh' cos - dlow' sin
template <typename T>
void RopeBackward(ThreadPool& pool, T* dx, int64_t stride, int64_t t, int64_t heads,
                  int64_t head_dim, const int32_t* positions, const double* inv_freq,
                  double scale) {
  Turn(pool, dx, stride, t, heads, head_dim, positions, inv_freq, scale, T(-1));
}

template void Rope(ThreadPool&, float*, int64_t, int64_t, int64_t, int64_t, const int32_t*,
                   const double*, double);
template void Rope(ThreadPool&, double*, int64_t, int64_t, int64_t, int64_t, const int32_t*,
                   const double*, double);
template void RopeBackward(ThreadPool&, float*, int64_t, int64_t, int64_t, int64_t, const int32_t*,
                           const double*, double);
template void RopeBackward(ThreadPool&, double*, int64_t, int64_t, int64_t, int64_t, const int32_t*,
                           const double*, double);

}  // namespace toroid
