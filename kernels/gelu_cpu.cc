#include <cmath>

#include "kernels/gelu.h"
#include "kernels/pieces.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

constexpr double kTwoRoot = 1.5957691216057308;  // 2 sqrt(2 / pi)
constexpr double kCubic = 0.044715;

// Beyond +-30 the sigmoid of 2u is 0 or 1 in any arithmetic; held there, no square overflows.
double Held(double x) { return x > 30 ? 30 : x < -30 ? -30 : x; }
double Sigmoid(double held) {
  return 1.0 / (1.0 + std::exp(-kTwoRoot * held * (1.0 + kCubic * held * held)));
}

void GeluRow(const double* x, double* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * Sigmoid(Held(x[i]));
}
void GeluRow(const float* x, float* out, int64_t n) { CurrentRowKernels().gelu(x, out, n); }

// out = x s(2u)  ->  dx = dout (s + x s (1 - s) 2 du/dx)
void BackwardRow(const double* x, const double* dout, double* dx, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double held = Held(x[i]), s = Sigmoid(held);
    const double slope = kTwoRoot * (1.0 + 3.0 * kCubic * held * held);
    dx[i] = dout[i] * s * (1.0 + held * (1.0 - s) * slope);
  }
}
void BackwardRow(const float* x, const float* dout, float* dx, int64_t n) {
  CurrentRowKernels().gelu_backward(x, dout, dx, n);
}

template <typename T>
void GeluRows(ThreadPool& pool, const T* x, int64_t x_stride, T* out, int64_t out_stride,
              int64_t rows, int64_t cols) {
  ForPieces(pool, rows, cols, [&](int64_t row, int64_t col, int64_t n) {
    GeluRow(x + row * x_stride + col, out + row * out_stride + col, n);
  });
}

template <typename T>
void BackwardRows(ThreadPool& pool, const T* x, int64_t x_stride, const T* dout,
                  int64_t dout_stride, T* dx, int64_t dx_stride, int64_t rows, int64_t cols) {
  ForPieces(pool, rows, cols, [&](int64_t row, int64_t col, int64_t n) {
    BackwardRow(x + row * x_stride + col, dout + row * dout_stride + col,
                dx + row * dx_stride + col, n);
  });
}

}  // namespace

void Gelu(ThreadPool& pool, const float* x, int64_t x_stride, float* out, int64_t out_stride,
          int64_t rows, int64_t cols) {
  GeluRows(pool, x, x_stride, out, out_stride, rows, cols);
}
void Gelu(ThreadPool& pool, const double* x, int64_t x_stride, double* out, int64_t out_stride,
          int64_t rows, int64_t cols) {
  GeluRows(pool, x, x_stride, out, out_stride, rows, cols);
}

void GeluBackward(ThreadPool& pool, const float* x, int64_t x_stride, const float* dout,
                  int64_t dout_stride, float* dx, int64_t dx_stride, int64_t rows, int64_t cols) {
  BackwardRows(pool, x, x_stride, dout, dout_stride, dx, dx_stride, rows, cols);
}
void GeluBackward(ThreadPool& pool, const double* x, int64_t x_stride, const double* dout,
                  int64_t dout_stride, double* dx, int64_t dx_stride, int64_t rows, int64_t cols) {
  BackwardRows(pool, x, x_stride, dout, dout_stride, dx, dx_stride, rows, cols);
}

}  // namespace toroid
