#include <cmath>

#include "kernels/pieces.h"
#include "kernels/row_kernels.h"
#include "kernels/swiglu.h"

namespace toroid {

namespace {

void SwiGluRow(const double* gate, const double* up, double* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
}
void SwiGluRow(const float* gate, const float* up, float* out, int64_t n) {
  CurrentRowKernels().swiglu(gate, up, out, n);
}

// out = gate s up  ->  dup = dout gate s,  dgate = dout up (s + gate s (1 - s))
void BackwardRow(const double* gate, const double* up, const double* dout, double* dgate,
                 double* dup, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = gate[i], y = up[i], d = dout[i], s = 1.0 / (1.0 + std::exp(-x));
    dgate[i] = d * y * s * (1.0 + x * (1.0 - s));
    dup[i] = d * x * s;
  }
}
void BackwardRow(const float* gate, const float* up, const float* dout, float* dgate, float* dup,
                 int64_t n) {
  CurrentRowKernels().swiglu_backward(gate, up, dout, dgate, dup, n);
}

template <typename T>
void SwiGluRows(ThreadPool& pool, const T* gate, int64_t gate_stride, const T* up,
                int64_t up_stride, T* out, int64_t out_stride, int64_t rows, int64_t cols) {
  ForPieces(pool, rows, cols, [&](int64_t row, int64_t col, int64_t n) {
    SwiGluRow(gate + row * gate_stride + col, up + row * up_stride + col,
              out + row * out_stride + col, n);
  });
}

template <typename T>
void BackwardRows(ThreadPool& pool, const T* gate, int64_t gate_stride, const T* up,
                  int64_t up_stride, const T* dout, int64_t dout_stride, T* dgate,
                  int64_t dgate_stride, T* dup, int64_t dup_stride, int64_t rows, int64_t cols) {
  ForPieces(pool, rows, cols, [&](int64_t row, int64_t col, int64_t n) {
    BackwardRow(gate + row * gate_stride + col, up + row * up_stride + col,
                dout + row * dout_stride + col, dgate + row * dgate_stride + col,
                dup + row * dup_stride + col, n);
  });
}

}  // namespace

void SwiGlu(ThreadPool& pool, const float* gate, int64_t gate_stride, const float* up,
            int64_t up_stride, float* out, int64_t out_stride, int64_t rows, int64_t cols) {
  SwiGluRows(pool, gate, gate_stride, up, up_stride, out, out_stride, rows, cols);
}
void SwiGlu(ThreadPool& pool, const double* gate, int64_t gate_stride, const double* up,
            int64_t up_stride, double* out, int64_t out_stride, int64_t rows, int64_t cols) {
  SwiGluRows(pool, gate, gate_stride, up, up_stride, out, out_stride, rows, cols);
}

void SwiGluBackward(ThreadPool& pool, const float* gate, int64_t gate_stride, const float* up,
                    int64_t up_stride, const float* dout, int64_t dout_stride, float* dgate,
                    int64_t dgate_stride, float* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols) {
  BackwardRows(pool, gate, gate_stride, up, up_stride, dout, dout_stride, dgate, dgate_stride, dup,
               dup_stride, rows, cols);
}
void SwiGluBackward(ThreadPool& pool, const double* gate, int64_t gate_stride, const double* up,
                    int64_t up_stride, const double* dout, int64_t dout_stride, double* dgate,
                    int64_t dgate_stride, double* dup, int64_t dup_stride, int64_t rows,
                    int64_t cols) {
  BackwardRows(pool, gate, gate_stride, up, up_stride, dout, dout_stride, dgate, dgate_stride, dup,
               dup_stride, rows, cols);
}

}  // namespace toroid
