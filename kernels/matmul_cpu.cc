#include <cblas.h>

#include <algorithm>
#include <mutex>

#include "kernels/dequantize.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/matmul.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

constexpr CBLAS_TRANSPOSE kAsIs = CblasNoTrans, kTransposed = CblasTrans;

// c [m, n] = (first ? 0 : c) + a [m, k] b [k, n], each of a and b as it lies or transposed
void Dgemm(CBLAS_TRANSPOSE a_way, CBLAS_TRANSPOSE b_way, int64_t m, int64_t n, int64_t k,
           const double* a, int64_t lda, const double* b, int64_t ldb, bool first, double* c,
           int64_t ldc) {
  cblas_dgemm(CblasRowMajor, a_way, b_way, m, n, k, 1.0, a, lda, b, ldb, first ? 0.0 : 1.0, c, ldc);
}

template <typename T>
void AddBias(const MatMulArgs<T>& a, int64_t row_begin, int64_t rows, int64_t begin, int64_t end) {
  if (a.bias == nullptr) return;
  for (int64_t r = row_begin; r < row_begin + rows; ++r) {
    T* out = a.out + r * a.out_stride;
    if (a.bias_type == DType::kF64) {
      const double* bias = static_cast<const double*>(a.bias);
      for (int64_t i = begin; i < end; ++i) out[i] += T(bias[i]);
    } else {
      const float* bias = static_cast<const float*>(a.bias);
      for (int64_t i = begin; i < end; ++i) out[i] += T(bias[i]);
    }
  }
}

const char* WeightRow(DType type, const void* w, int64_t stride, int64_t row) {
  return static_cast<const char*>(w) + row * RowBytes(type, stride);
}

// Pieces of at most `most` whose sizes differ little, in multiples of `multiple`.
int64_t Even(int64_t size, int64_t most, int64_t multiple) {
  const int64_t pieces = (size + most - 1) / most;
  const int64_t even = (size + pieces - 1) / pieces;
  return std::min(most, (even + multiple - 1) / multiple * multiple);
}

// Products in float64. An item is a block of rows of x by a panel of rows of w; the panel is
// widened into the worker's scratch, in pieces of k if it is long.
class PanelProduct {
 public:
  explicit PanelProduct(const MatMulArgs<double>& args) : a_(args) {
    direct_ = a_.w_type == DType::kF64;
    const int64_t scratch = ThreadPool::kScratchBytes / static_cast<int64_t>(sizeof(double)) / 2;
    piece_ = direct_ ? a_.k : std::min<int64_t>(a_.k, 2048);
    // Enough items for every worker to have several, unless the product is small.
    int64_t panel = a_.m <= 64 ? 96 : 256;
    if (!direct_) panel = std::min(panel, scratch / piece_);
    panel_ = Even(a_.n, panel, 8);
    rows_ = Even(a_.m, a_.m <= 512 ? 256 : 512, 8);
    panels_ = (a_.n + panel_ - 1) / panel_;
    blocks_ = (a_.m + rows_ - 1) / rows_;
  }

  void Run(ThreadPool& pool) {
    pool.ParallelFor(panels_ * blocks_, 1, [&](int64_t item, int64_t, int worker) {
      Item(item / blocks_, item % blocks_, static_cast<double*>(pool.scratch(worker)));
    });
  }

 private:
  void Item(int64_t panel, int64_t block, double* scratch) const {
    const int64_t begin = panel * panel_, end = std::min(a_.n, begin + panel_);
    const int64_t row = block * rows_, rows = std::min(rows_, a_.m - row);
    double* out = a_.out + row * a_.out_stride + begin;
    for (int64_t k = 0; k < a_.k; k += piece_) {
      const int64_t count = std::min(piece_, a_.k - k);
      const double* w =
          reinterpret_cast<const double*>(WeightRow(a_.w_type, a_.w, a_.w_stride, begin)) + k;
      int64_t stride = a_.w_stride;
      if (!direct_) {
        for (int64_t i = begin; i < end; ++i) {
          DecodeRow(a_.w_type, WeightRow(a_.w_type, a_.w, a_.w_stride, i), k, count,
                    scratch + (i - begin) * count);
        }
        w = scratch, stride = count;
      }
      Dgemm(kAsIs, kTransposed, rows, end - begin, count, a_.x + row * a_.x_stride + k, a_.x_stride,
            w, stride, k == 0, out, a_.out_stride);
    }
    AddBias(a_, row, rows, begin, end);
  }

  const MatMulArgs<double>& a_;
  bool direct_;
  int64_t piece_, panel_, rows_, panels_, blocks_;
};

// Few rows: every weight is read once, as stored, in chunks of about 32 KiB.
void MatVecProduct(ThreadPool& pool, const MatMulArgs<float>& a) {
  const RowKernels& kernels = CurrentRowKernels();
  const int64_t row_bytes = RowBytes(a.w_type, a.w_stride);
  const int64_t grain = std::clamp<int64_t>(32768 / std::max<int64_t>(row_bytes, 1), 4, 256);
  if (a.m == 1 && kernels.prepare && (a.w_type == DType::kQ4_0 || a.w_type == DType::kQ4_1) &&
      PreparedBytes(a.k) <= ThreadPool::kScratchBytes) {
    void* prepared = pool.shared_scratch();
    kernels.prepare(a.w_type, a.x, a.k, prepared);
    pool.ParallelFor(a.n, grain / 4 * 4, [&](int64_t begin, int64_t end, int) {
      kernels.matvec_prepared(a.w_type, prepared, WeightRow(a.w_type, a.w, a.w_stride, begin),
                              row_bytes, end - begin, a.k, a.out + begin);
      AddBias(a, 0, 1, begin, end);
    });
    return;
  }
  pool.ParallelFor(a.n, grain, [&](int64_t begin, int64_t end, int) {
    kernels.matvec(a.w_type, a.x, a.x_stride, a.m, WeightRow(a.w_type, a.w, a.w_stride, begin),
                   row_bytes, end - begin, a.k, a.out + begin, a.out_stride);
    AddBias(a, 0, a.m, begin, end);
  });
}

// dx = dout w in float64. An item is a block of rows of dx by a panel of columns of w; where w is
// not float64 the panel is widened into the worker's scratch, in pieces of n.
void InputProduct(ThreadPool& pool, const MatMulBackwardArgs<double>& a) {
  const bool direct = a.w_type == DType::kF64;
  const int64_t panel = Even(a.k, 256, 32), rows = Even(a.m, a.m <= 512 ? 256 : 512, 8);
  const int64_t scratch = ThreadPool::kScratchBytes / static_cast<int64_t>(sizeof(double)) / 2;
  const int64_t piece = direct ? a.n : std::min(a.n, scratch / panel);
  const int64_t panels = (a.k + panel - 1) / panel, blocks = (a.m + rows - 1) / rows;
  pool.ParallelFor(panels * blocks, 1, [&](int64_t item, int64_t, int worker) {
    const int64_t col = item / blocks * panel, cols = std::min(panel, a.k - col);
    const int64_t row = item % blocks * rows, count = std::min(rows, a.m - row);
    double* widened = static_cast<double*>(pool.scratch(worker));
    for (int64_t i = 0; i < a.n; i += piece) {
      const int64_t n = std::min(piece, a.n - i);
      const double* w = static_cast<const double*>(a.w) + col;
      int64_t stride = a.w_stride;
      if (!direct) {
        for (int64_t j = 0; j < n; ++j) {
          DecodeRow(a.w_type, WeightRow(a.w_type, a.w, a.w_stride, i + j), col, cols,
                    widened + j * cols);
        }
        w = widened, stride = cols;
      }
      // out[r][i] = sum_c x[r][c] w[i][c]  ->  dx[r][c] = sum_i dout[r][i] w[i][c]
      Dgemm(kAsIs, kAsIs, count, cols, n, a.dout + row * a.dout_stride + i, a.dout_stride, w,
            stride, i == 0 && !a.add_dx, a.dx + row * a.dx_stride + col, a.dx_stride);
    }
  });
}

// dw += dout^T x. An item is a panel of rows by a panel of columns of dw, all tokens in one go.
void WeightProduct(ThreadPool& pool, const MatMulBackwardArgs<double>& a) {
  const int64_t rows = Even(a.n, 256, 8), cols = Even(a.k, 256, 8);
  const int64_t panels = (a.n + rows - 1) / rows, blocks = (a.k + cols - 1) / cols;
  pool.ParallelFor(panels * blocks, 1, [&](int64_t item, int64_t, int) {
    const int64_t row = item / blocks * rows, col = item % blocks * cols;
    // out[r][i] = sum_c x[r][c] w[i][c]  ->  dw[i][c] += sum_r dout[r][i] x[r][c]
    Dgemm(kTransposed, kAsIs, std::min(rows, a.n - row), std::min(cols, a.k - col), a.m,
          a.dout + row, a.dout_stride, a.x + col, a.x_stride, false, a.dw + row * a.dw_stride + col,
          a.dw_stride);
  });
}

// out[r][i] = sum_c x[r][c] w[i][c]  ->  dx[r][c] = sum_i dout[r][i] w[i][c]
void InputProduct(ThreadPool& pool, const MatMulBackwardArgs<float>& a) {
  GemmArgs product{.m = a.m, .n = a.k, .k = a.n};
  product.a = a.dout, product.a_stride = a.dout_stride;
  product.b_type = a.w_type, product.b = a.w, product.b_stride = a.w_stride;
  product.add = a.add_dx;
  product.c = a.dx, product.c_stride = a.dx_stride;
  Gemm(pool, product);
}

// out[r][i] = sum_c x[r][c] w[i][c]  ->  dw[i][c] += sum_r dout[r][i] x[r][c]
void WeightProduct(ThreadPool& pool, const MatMulBackwardArgs<float>& a) {
  GemmArgs product{.m = a.n, .n = a.k, .k = a.m};
  product.a = a.dout, product.a_stride = a.dout_stride, product.a_turned = true;
  product.b = a.x, product.b_stride = a.x_stride;
  product.add = true;
  product.c = a.dw, product.c_stride = a.dw_stride;
  Gemm(pool, product);
}

// A rank that holds no column of a split weight: the sum of nothing, plus the bias.
template <typename T>
void EmptyProduct(const MatMulArgs<T>& a) {
  for (int64_t i = 0; i < a.m; ++i) std::fill_n(a.out + i * a.out_stride, a.n, T(0));
  AddBias(a, 0, a.m, 0, a.n);
}

// The pool is our parallelism: OpenBLAS's own threads would compete with it.
void QuietOpenBlas() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

template <typename T>
void Backward(ThreadPool& pool, const MatMulBackwardArgs<T>& a) {
  if (a.m <= 0) return;
  if (a.dx != nullptr && a.k > 0) {
    if (a.n > 0) {
      InputProduct(pool, a);
    } else if (!a.add_dx) {  // the sum over no columns
      for (int64_t i = 0; i < a.m; ++i) std::fill_n(a.dx + i * a.dx_stride, a.k, T(0));
    }
  }
  if (a.dw != nullptr && a.n > 0 && a.k > 0) WeightProduct(pool, a);
  // out[r][i] = ... + bias[i]
  if (a.dbias != nullptr) SumRows(pool, a.dout, a.dout_stride, a.m, a.n, a.dbias);
}

}  // namespace

void MatMul(ThreadPool& pool, const MatMulArgs<float>& args) {
  if (args.m <= 0 || args.n <= 0) return;
  if (args.k <= 0) return EmptyProduct(args);
  if (args.m <= kMatVecRows) {
    MatVecProduct(pool, args);
    return;
  }
  GemmArgs product{.m = args.m, .n = args.n, .k = args.k};
  product.a = args.x, product.a_stride = args.x_stride;
  product.b_type = args.w_type, product.b = args.w, product.b_stride = args.w_stride;
  product.b_turned = true;
  product.bias = args.bias, product.bias_type = args.bias_type;
  product.c = args.out, product.c_stride = args.out_stride;
  Gemm(pool, product);
}

void MatMul(ThreadPool& pool, const MatMulArgs<double>& args) {
  if (args.m <= 0 || args.n <= 0) return;
  if (args.k <= 0) return EmptyProduct(args);
  QuietOpenBlas();
  PanelProduct(args).Run(pool);
}

void MatMulBackward(ThreadPool& pool, const MatMulBackwardArgs<float>& args) {
  Backward(pool, args);
}
void MatMulBackward(ThreadPool& pool, const MatMulBackwardArgs<double>& args) {
  QuietOpenBlas();
  Backward(pool, args);
}

}  // namespace toroid
