// Inside of the float32 matrix product (gemm.h): the loops that are compiled once per instruction
// set. Panels are [depth][width]: of each index of the sum, `width` rows of a or columns of b.
#pragma once

#include <cstdint>

namespace toroid {

struct GemmKernels {
  int64_t rows, cols;  // of a tile: the widths of a's and of b's panels; multiples of 4

  // c [m, n] = (add ? c : 0) + a b for m <= any, panels of a side by side (each depth x rows), n
  // columns of panels of b (each depth x cols), the last ones filled up with zeros.
  void (*product)(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, bool add,
                  float* c, int64_t c_stride);
  // One panel from `lanes` <= width rows that run along the sum: to[p][lane] = from[lane stride +
  // p], zeros in other lanes. The width is that of a's or of b's panels.
  void (*turn_a)(const float* from, int64_t stride, int64_t lanes, int64_t depth, float* to);
  void (*turn_b)(const float* from, int64_t stride, int64_t lanes, int64_t depth, float* to);
  // One row of the sum: to[panel width depth + lane] = from[panel width + lane] for `count` numbers
  // and zeros up to the last panel's end.
  void (*deal_a)(const float* from, int64_t count, int64_t depth, float* to);
  void (*deal_b)(const float* from, int64_t count, int64_t depth, float* to);
};

const GemmKernels& GemmKernelsAvx2();
const GemmKernels& GemmKernelsAvx512();

}  // namespace toroid
