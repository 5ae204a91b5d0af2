// The loops of gemm_block.h, written once for vectors of L floats.
//
// A tile of c lies in registers, kRows rows by kVectors vectors: for each index of the sum the
// vectors of b are read once and each number of a is broadcast. 4 x 3 vectors fill 16 registers (12
// sums, 3 of b, 1 of a), 12 x 2 fill 32. A panel of b stays in the first-level cache while the
// panels of a stream past it from the second.
#pragma once

#include "kernels/gemm_block.h"
#include "kernels/vector.h"

namespace toroid {
namespace {

template <int L>
struct GemmLoops {
  static constexpr int kRows = L >= 16 ? 12 : 4, kVectors = L >= 16 ? 2 : 3, kCols = kVectors * L;
  using N = Lanes<float, L>;
  using V = typename N::V;

  // sum[row][col] of one tile, over panels a and b.
  static void Sum(const float* a, const float* b, int64_t depth, V (&sum)[kRows][kVectors]) {
    for (int64_t p = 0; p < depth; ++p) {
      V y[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) y[v] = N::LoadOnce(b + p * kCols + v * L);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V x = N::Set(a[p * kRows + r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] += x * y[v];
      }
    }
  }

  static void WholeTile(const float* a, const float* b, int64_t depth, bool add, float* c,
                        int64_t stride) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(c + r * stride + v * L, 1);
    }
    V sum[kRows][kVectors] = {};
    Sum(a, b, depth, sum);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* to = c + r * stride + v * L;
        N::Store(to, add ? N::Load(to) + sum[r][v] : sum[r][v]);
      }
    }
  }

  static void PartOfTile(const float* a, const float* b, int64_t depth, bool add, float* c,
                         int64_t stride, int64_t rows, int64_t cols) {
    float whole[kRows * kCols];
    WholeTile(a, b, depth, /*add=*/false, whole, kCols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; ++i) {
        float* to = c + r * stride + i;
        *to = add ? *to + whole[r * kCols + i] : whole[r * kCols + i];
      }
    }
  }

  static void Product(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, bool add,
                      float* c, int64_t stride) {
    for (int64_t col = 0; col < n; col += kCols) {
      const int64_t cols = n - col < kCols ? n - col : kCols;
      const float* b_panel = b + col * depth;
      for (int64_t row = 0; row < m; row += kRows) {
        const int64_t rows = m - row < kRows ? m - row : kRows;
        float* tile = c + row * stride + col;
        if (rows == kRows && cols == kCols) {
          WholeTile(a + row * depth, b_panel, depth, add, tile, stride);
        } else {
          PartOfTile(a + row * depth, b_panel, depth, add, tile, stride, rows, cols);
        }
      }
    }
  }

  // Squares of 4 by 4 are turned in registers.
  template <int kWidth>
  static void Turn(const float* from, int64_t stride, int64_t lanes, int64_t depth, float* to) {
    using Q = Lanes<float, 4>;
    int64_t lane = 0;
    for (; lane + 4 <= lanes; lane += 4) {
      const float* row = from + lane * stride;
      int64_t p = 0;
      for (; p + 4 <= depth; p += 4) {
        const Q::V x0 = Q::Load(row + p), x1 = Q::Load(row + stride + p);
        const Q::V x2 = Q::Load(row + 2 * stride + p), x3 = Q::Load(row + 3 * stride + p);
        const Q::V low0 = __builtin_shufflevector(x0, x1, 0, 4, 1, 5);
        const Q::V low2 = __builtin_shufflevector(x2, x3, 0, 4, 1, 5);
        const Q::V high0 = __builtin_shufflevector(x0, x1, 2, 6, 3, 7);
        const Q::V high2 = __builtin_shufflevector(x2, x3, 2, 6, 3, 7);
        float* out = to + p * kWidth + lane;
        Q::Store(out, __builtin_shufflevector(low0, low2, 0, 1, 4, 5));
        Q::Store(out + kWidth, __builtin_shufflevector(low0, low2, 2, 3, 6, 7));
        Q::Store(out + 2 * kWidth, __builtin_shufflevector(high0, high2, 0, 1, 4, 5));
        Q::Store(out + 3 * kWidth, __builtin_shufflevector(high0, high2, 2, 3, 6, 7));
      }
      for (; p < depth; ++p) {
        for (int i = 0; i < 4; ++i) to[p * kWidth + lane + i] = row[i * stride + p];
      }
    }
    for (; lane < kWidth; ++lane) {
      for (int64_t p = 0; p < depth; ++p) {
        to[p * kWidth + lane] = lane < lanes ? from[lane * stride + p] : 0.0f;
      }
    }
  }

  template <int kWidth>
  static void Deal(const float* from, int64_t count, int64_t depth, float* to) {
    int64_t begin = 0;
    for (; begin + kWidth <= count; begin += kWidth) {
      float* panel = to + begin * depth;
      for (int i = 0; i < kWidth; i += 4) {
        Lanes<float, 4>::Store(panel + i, Lanes<float, 4>::Load(from + begin + i));
      }
    }
    for (int64_t i = begin; begin < count && i < begin + kWidth; ++i) {
      to[begin * depth + i - begin] = i < count ? from[i] : 0.0f;
    }
  }

  static constexpr GemmKernels kTable = {kRows,       kCols,       Product,    Turn<kRows>,
                                         Turn<kCols>, Deal<kRows>, Deal<kCols>};
};

}  // namespace
}  // namespace toroid
