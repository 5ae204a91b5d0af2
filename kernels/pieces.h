// Work on matrices element by element, in pieces of rows, so that one long row (decode) is shared
// by several workers too.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/thread_pool.h"

namespace toroid {

// Calls body(row, first column, columns) for pieces that cover [rows, cols].
template <typename Body>
void ForPieces(ThreadPool& pool, int64_t rows, int64_t cols, Body body) {
  constexpr int64_t kPiece = 4096;
  const int64_t pieces = (cols + kPiece - 1) / kPiece;
  pool.ParallelFor(rows * pieces, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i % pieces * kPiece;
      body(i / pieces, col, std::min(kPiece, cols - col));
    }
  });
}

}  // namespace toroid
