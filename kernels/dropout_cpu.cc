#include "kernels/dropout.h"
#include "kernels/philox.h"
#include "kernels/pieces.h"

namespace toroid {
namespace {

template <typename T>
void DropoutRows(ThreadPool& pool, const DropoutSpec& spec, int64_t step, const int64_t* row_ids,
                 int64_t col_begin, const T* x, int64_t x_stride, T* out, int64_t out_stride,
                 int64_t rows, int64_t cols) {
  const uint64_t dropped = uint64_t(spec.rate * 0x1p32);  // a word below it drops its element
  const T scale = T(1 / (1 - spec.rate));
  const uint64_t use = uint64_t(step) << 24 | uint64_t(spec.layer) << 8 | uint64_t(spec.site);
  ForPieces(pool, rows, cols, [&](int64_t row, int64_t col, int64_t n) {
    const T* from = x + row * x_stride + col;
    T* to = out + row * out_stride + col;
    uint64_t element = uint64_t(row_ids[row]) * uint64_t(spec.width) + uint64_t(col_begin + col);
    for (int64_t i = 0; i < n;) {
      const auto words = Philox(spec.seed, element / 4, use);
      for (uint64_t word = element % 4; word < 4 && i < n; ++word, ++i, ++element) {
        to[i] = words[word] < dropped ? T(0) : from[i] * scale;
      }
    }
  });
}

}  // namespace

void Dropout(ThreadPool& pool, const DropoutSpec& spec, int64_t step, const int64_t* row_ids,
             int64_t col_begin, const float* x, int64_t x_stride, float* out, int64_t out_stride,
             int64_t rows, int64_t cols) {
  DropoutRows(pool, spec, step, row_ids, col_begin, x, x_stride, out, out_stride, rows, cols);
}

void Dropout(ThreadPool& pool, const DropoutSpec& spec, int64_t step, const int64_t* row_ids,
             int64_t col_begin, const double* x, int64_t x_stride, double* out, int64_t out_stride,
             int64_t rows, int64_t cols) {
  DropoutRows(pool, spec, step, row_ids, col_begin, x, x_stride, out, out_stride, rows, cols);
}

}  // namespace toroid
