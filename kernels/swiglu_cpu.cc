#include <algorithm>
#include <cmath>

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

// Chunks are pieces of a row, so that one long row (decode) is shared too.
template <typename T>
void SwiGluRows(ThreadPool& pool, const T* gate, int64_t gate_stride, const T* up,
                int64_t up_stride, T* out, int64_t out_stride, int64_t rows, int64_t cols) {
  constexpr int64_t kPiece = 4096;
  const int64_t pieces = (cols + kPiece - 1) / kPiece;
  pool.ParallelFor(rows * pieces, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces, col = i % pieces * kPiece;
      SwiGluRow(gate + row * gate_stride + col, up + row * up_stride + col,
                out + row * out_stride + col, std::min(kPiece, cols - col));
    }
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

}  // namespace toroid
