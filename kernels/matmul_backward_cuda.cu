// Backward of the product on a CUDA device: by cuBLASLt, on operands narrowed into the workspace
// where the product's type wants it.
#include <algorithm>

#include "kernels/dequantize.h"
#include "kernels/device.cuh"
#include "kernels/elementwise.h"
#include "kernels/matmul_plans.h"

namespace toroid {

void CudaMatMul::RunBackward(CudaStream s, const CudaMatMulBackwardArgs& args, void* workspace) {
  if (args.m == 0 || args.n == 0 || error_ != nullptr) {
    if (args.m > 0 && args.dx != nullptr && !args.add_dx) {
      FillRows(s, args.dx_type, args.dx, args.dx_stride, args.m, args.k, 0);
    }
    return;
  }
  if (args.dx != nullptr) InputGradient(s, args, static_cast<char*>(workspace));
  if (args.dw != nullptr) WeightGradient(s, args, static_cast<char*>(workspace));
  if (args.dbias != nullptr) {
    SumRows(s, args.dout_type, args.dout, args.dout_stride, args.m, args.n, args.dbias, workspace,
            kMatMulWorkspaceBytes);
  }
}

// out = x w^T  ->  dx [m, k] = dout [m, n] w [n, k]. Cuts w by rows, over which the sum goes, and
// dout by rows. (The pieces' sums are added up in dx's type.)
void CudaMatMul::InputGradient(CudaStream s, const CudaMatMulBackwardArgs& a, char* workspace) {
  char* dout_room = workspace + kLibraryBytes;
  char* w_room = dout_room + kSmallRoomBytes;
  const int64_t w_bytes = RowBytes(a.w_type, a.w_stride);
  const int64_t dout_bytes = RowBytes(a.dout_type, a.dout_stride);
  const bool dout_as_is = AsItIs(a.dout_type, a.dout, dout_bytes);
  const bool w_as_is = AsItIs(a.w_type, a.w, w_bytes);
  const int64_t w_stride = CeilDiv(a.k, 8) * 8;
  const int64_t w_fit =
      std::max<int64_t>(kLargeRoomBytes / RowBytes(product_, w_stride) / 8 * 8, 8);
  // Of dout at least 64 rows fit beside each other.
  const int64_t dout_fit = kSmallRoomBytes / 64 / RowBytes(product_, 1) / 8 * 8;
  int64_t w_rows = w_as_is ? a.n : std::min(a.n, w_fit);
  if (!dout_as_is) w_rows = std::min(w_rows, dout_fit);
  for (int64_t j = 0; j < a.n; j += w_rows) {
    const int64_t n = std::min(w_rows, a.n - j);
    Operand w{static_cast<const char*>(a.w) + j * w_bytes, a.w_stride};
    if (!w_as_is) {
      DecodeRows(s, a.w_type, w.data, w_bytes, n, a.k, product_, w_room, w_stride);
      w = {w_room, w_stride};
    }
    const int64_t stride = CeilDiv(n, 8) * 8;
    const int64_t rows =
        dout_as_is ? a.m : std::min(a.m, kSmallRoomBytes / RowBytes(product_, stride));
    for (int64_t i = 0; i < a.m; i += rows) {
      const int64_t m = std::min(rows, a.m - i);
      Operand dout{static_cast<const char*>(a.dout) + RowBytes(a.dout_type, i * a.dout_stride + j),
                   a.dout_stride};
      if (!dout_as_is) {
        DecodeRows(s, a.dout_type, dout.data, dout_bytes, m, n, product_, dout_room, stride);
        dout = {dout_room, stride};
      }
      char* dx = static_cast<char*>(a.dx) + RowBytes(a.dx_type, i * a.dx_stride);
      Keep(plans_->Run(s, product_,
                       {m, a.k, n, dout, w, a.dx_type, dx, a.dx_stride, a.add_dx || j > 0},
                       workspace));
    }
  }
}

// dw [n, k] += dout [m, n]^T x [m, k]. Cuts both by rows, over which the sum goes, and dout by
// columns.
void CudaMatMul::WeightGradient(CudaStream s, const CudaMatMulBackwardArgs& a, char* workspace) {
  char* x_room = workspace + kLibraryBytes;
  char* dout_room = x_room + kSmallRoomBytes;
  const int64_t x_bytes = RowBytes(a.x_type, a.x_stride);
  const int64_t dout_bytes = RowBytes(a.dout_type, a.dout_stride);
  const bool x_as_is = AsItIs(a.x_type, a.x, x_bytes);
  const bool dout_as_is = AsItIs(a.dout_type, a.dout, dout_bytes);
  const int64_t x_stride = CeilDiv(a.k, 8) * 8;
  const int64_t x_fit = kSmallRoomBytes / RowBytes(product_, x_stride);
  // Of dout at least eight columns fit beside each other.
  const int64_t dout_fit = kLargeRoomBytes / RowBytes(product_, 8);
  int64_t rows = x_as_is ? a.m : std::min(a.m, x_fit);
  if (!dout_as_is) rows = std::min(rows, dout_fit);
  const int64_t fit = kLargeRoomBytes / RowBytes(product_, 1) / rows / 8 * 8;
  const int64_t cols = dout_as_is ? a.n : std::min(a.n, std::max<int64_t>(fit, 8));
  for (int64_t i = 0; i < a.m; i += rows) {
    const int64_t m = std::min(rows, a.m - i);
    Operand x{static_cast<const char*>(a.x) + i * x_bytes, a.x_stride};
    if (!x_as_is) {
      DecodeRows(s, a.x_type, x.data, x_bytes, m, a.k, product_, x_room, x_stride);
      x = {x_room, x_stride};
    }
    for (int64_t j = 0; j < a.n; j += cols) {
      const int64_t n = std::min(cols, a.n - j);
      Operand dout{static_cast<const char*>(a.dout) + RowBytes(a.dout_type, i * a.dout_stride + j),
                   a.dout_stride, true};
      if (!dout_as_is) {
        const int64_t stride = CeilDiv(n, 8) * 8;
        DecodeRows(s, a.dout_type, dout.data, dout_bytes, m, n, product_, dout_room, stride);
        dout = {dout_room, stride, true};
      }
      Keep(plans_->Run(s, product_,
                       {n, a.k, m, dout, x, DType::kF32, a.dw + j * a.dw_stride, a.dw_stride,
                        /*add=*/true},
                       workspace));
    }
  }
}

}  // namespace toroid
