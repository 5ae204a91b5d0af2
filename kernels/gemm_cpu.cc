#include <algorithm>

#include "kernels/gemm.h"
#include "kernels/gemm_kernel.h"
#include "kernels/isa.h"
#include "kernels/row_kernels.h"

namespace toroid {

namespace {

const GemmKernels& CurrentKernels() {
  static constexpr GemmKernels kScalar = GemmLoops<4>::kTable;
  switch (CurrentIsa()) {
    case Isa::kAvx512:
      return GemmKernelsAvx512();
    case Isa::kAvx2:
      return GemmKernelsAvx2();
    case Isa::kScalar:
      break;
  }
  return kScalar;
}

// Columns of b whose panels fit the shared scratch: whole panels of every width, and whole blocks
// of every stored type.
constexpr int64_t kColumns = 2016, kColumnsMultiple = 96;
static_assert(kColumns * kGemmDepth * int64_t{sizeof(float)} <= ThreadPool::kScratchBytes);
constexpr int64_t kRows = 64;  // of a block: its part of a is 64 KiB, of a second-level cache
constexpr int64_t kWantedItems = 16;  // for the workers to share

int64_t Pieces(int64_t size, int64_t most) { return (size + most - 1) / most; }

// Pieces of at most `most` whose sizes differ little, in multiples of `multiple`.
int64_t Even(int64_t size, int64_t most, int64_t multiple) {
  const int64_t even = Pieces(size, Pieces(size, most));
  return std::min(most, Pieces(even, multiple) * multiple);
}

class Product {
 public:
  Product(ThreadPool& pool, const GemmArgs& args)
      : pool_(pool), g_(args), kernels_(CurrentKernels()) {
    rows_ = Even(g_.m, kRows / kernels_.rows * kernels_.rows, kernels_.rows);
  }

  void Run() {
    const int64_t most = Even(g_.n, kColumns, kColumnsMultiple);
    for (int64_t col = 0; col < g_.n; col += most) {
      col_ = col, cols_ = std::min(most, g_.n - col);
      for (int64_t p = 0; p < g_.k; p += kGemmDepth) {
        p_ = p, depth_ = std::min(kGemmDepth, g_.k - p);
        PackB();
        Multiply();
      }
    }
  }

 private:
  float* panels() const { return static_cast<float*>(pool_.shared_scratch()); }

  // `count` numbers of row `row` of b as it lies, from `begin` on; widened into `room` if need be.
  const float* RowOfB(int64_t row, int64_t begin, int64_t count, float* room) const {
    const char* at = static_cast<const char*>(g_.b) + row * RowBytes(g_.b_type, g_.b_stride);
    if (g_.b_type == DType::kF32) return reinterpret_cast<const float*>(at) + begin;
    CurrentRowKernels().decode(g_.b_type, at, begin, count, room);
    return room;
  }

  void PackB() const {
    const int64_t width = kernels_.cols;
    if (!g_.b_turned) {  // a row of b is dealt to all panels
      pool_.ParallelFor(depth_, 16, [&](int64_t begin, int64_t end, int worker) {
        float* room = static_cast<float*>(pool_.scratch(worker));
        for (int64_t p = begin; p < end; ++p) {
          kernels_.deal_b(RowOfB(p_ + p, col_, cols_, room), cols_, depth_, panels() + p * width);
        }
      });
      return;
    }
    pool_.ParallelFor(Pieces(cols_, width), 4, [&](int64_t begin, int64_t end, int worker) {
      float* room = static_cast<float*>(pool_.scratch(worker));
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * width, lanes = std::min(width, cols_ - first);
        const float* from = RowOfB(col_ + first, p_, depth_, room);
        for (int64_t lane = 1; from == room && lane < lanes; ++lane) {
          RowOfB(col_ + first + lane, p_, depth_, room + lane * depth_);
        }
        kernels_.turn_b(from, from == room ? depth_ : g_.b_stride, lanes, depth_,
                        panels() + first * depth_);
      }
    });
  }

  void PackA(int64_t row, int64_t rows, float* to) const {
    const int64_t width = kernels_.rows;
    if (g_.a_turned) {
      for (int64_t p = 0; p < depth_; ++p) {
        kernels_.deal_a(g_.a + (p_ + p) * g_.a_stride + row, rows, depth_, to + p * width);
      }
      return;
    }
    for (int64_t first = 0; first < rows; first += width) {
      kernels_.turn_a(g_.a + (row + first) * g_.a_stride + p_, g_.a_stride,
                      std::min(width, rows - first), depth_, to + first * depth_);
    }
  }

  // An item is a block of rows by a part of the columns.
  void Multiply() const {
    const int64_t blocks = Pieces(g_.m, rows_), panels_of_b = Pieces(cols_, kernels_.cols);
    // A part is at least eight panels, for which a's copy is worth its while.
    const int64_t parts =
        std::clamp<int64_t>(Pieces(kWantedItems, blocks), 1, std::max<int64_t>(1, panels_of_b / 8));
    const int64_t part = Pieces(panels_of_b, parts) * kernels_.cols;
    pool_.ParallelFor(blocks * parts, 1, [&](int64_t item, int64_t, int worker) {
      const int64_t row = item / parts * rows_, rows = std::min(rows_, g_.m - row);
      const int64_t begin = item % parts * part, end = std::min(begin + part, cols_);
      if (begin >= end) return;
      float* a = static_cast<float*>(pool_.scratch(worker));
      PackA(row, rows, a);
      float* c = g_.c + row * g_.c_stride + col_ + begin;
      kernels_.product(a, panels() + begin * depth_, rows, end - begin, depth_, g_.add || p_ > 0, c,
                       g_.c_stride);
      if (p_ + depth_ == g_.k) AddBias(rows, col_ + begin, end - begin, c);
    });
  }

  void AddBias(int64_t rows, int64_t begin, int64_t count, float* c) const {
    if (g_.bias == nullptr) return;
    for (int64_t r = 0; r < rows; ++r, c += g_.c_stride) {
      if (g_.bias_type == DType::kF64) {
        const double* bias = static_cast<const double*>(g_.bias) + begin;
        for (int64_t i = 0; i < count; ++i) c[i] += float(bias[i]);
      } else {
        const float* bias = static_cast<const float*>(g_.bias) + begin;
        for (int64_t i = 0; i < count; ++i) c[i] += bias[i];
      }
    }
  }

  ThreadPool& pool_;
  const GemmArgs& g_;
  const GemmKernels& kernels_;
  int64_t rows_;
  int64_t col_ = 0, cols_ = 0;  // of b, being multiplied
  int64_t p_ = 0, depth_ = 0;   // of the sum
};

}  // namespace

void Gemm(ThreadPool& pool, const GemmArgs& args) { Product(pool, args).Run(); }

}  // namespace toroid
