// Few rows go to our own matrix-vector kernels, more to cuBLASLt, on weights widened (or narrowed)
// into the workspace unless they can be multiplied as they lie.
#include <algorithm>

#include "kernels/dequantize.h"
#include "kernels/device.cuh"
#include "kernels/matmul_plans.h"
#include "kernels/matvec.cuh"
#include "kernels/matvec_fused.h"

namespace toroid {

CudaMatMul::CudaMatMul(DType product, bool measures)
    : product_(product), plans_(std::make_unique<Plans>()) {
  plans_->measures = measures;
  Keep(cublasLtCreate(&plans_->handle));
}
CudaMatMul::~CudaMatMul() {
  plans_->by_shape.clear();
  if (plans_->handle != nullptr) cublasLtDestroy(plans_->handle);
}

void CudaMatMul::Keep(int status) {
  if (error_ == nullptr && status != CUBLAS_STATUS_SUCCESS) {
    error_ = cublasLtGetStatusName(cublasStatus_t(status));
  }
}

void CudaMatMul::Run(CudaStream s, const CudaMatMulArgs& args, void* workspace) {
  if (args.m == 0 || args.n == 0 || error_ != nullptr) return;
  if (args.m <= kMatVecRows && args.x_type == DType::kF32 && args.out_type == DType::kF32) {
    MatMulArgs<float> few;
    few.x = static_cast<const float*>(args.x), few.x_stride = args.x_stride;
    few.m = args.m, few.n = args.n, few.k = args.k;
    few.w_type = args.w_type, few.w = args.w, few.w_stride = args.w_stride;
    few.bias = args.bias, few.bias_type = args.bias_type;
    few.out = static_cast<float*>(args.out), few.out_stride = args.out_stride;
    if (few.m > 1 || !CanFuse(few)) return MatVec(s, few);
    FusedMatVecArgs alone;
    alone.count = 1, alone.products[0] = few;
    return FusedMatVec(s, alone, /*overlap=*/false);
  }
  Forward(s, args, static_cast<char*>(workspace));
  if (args.bias != nullptr) {
    AddBias(s, args.out_type, args.out, args.out_stride, args.m, args.n, args.bias_type, args.bias);
  }
}

// Cuts w by rows, and x too, so that what must be converted fits the workspace.
void CudaMatMul::Forward(CudaStream s, const CudaMatMulArgs& a, char* workspace) {
  char* x_room = workspace + kLibraryBytes;
  char* w_room = x_room + kSmallRoomBytes;
  const int64_t w_bytes = RowBytes(a.w_type, a.w_stride);
  const int64_t x_bytes = RowBytes(a.x_type, a.x_stride);
  const bool x_as_is = AsItIs(a.x_type, a.x, x_bytes);
  const bool w_as_is = AsItIs(a.w_type, a.w, w_bytes);
  const int64_t stride = CeilDiv(a.k, 8) * 8, row_bytes = RowBytes(product_, stride);
  const int64_t w_rows = w_as_is ? a.n : std::min(a.n, kLargeRoomBytes / row_bytes);
  const int64_t x_rows = x_as_is ? a.m : std::min(a.m, kSmallRoomBytes / row_bytes);
  for (int64_t j = 0; j < a.n; j += w_rows) {
    const int64_t n = std::min(w_rows, a.n - j);
    Operand w{static_cast<const char*>(a.w) + j * w_bytes, a.w_stride, true};
    if (!w_as_is) {
      DecodeRows(s, a.w_type, w.data, w_bytes, n, a.k, product_, w_room, stride);
      w = {w_room, stride, true};
    }
    for (int64_t i = 0; i < a.m; i += x_rows) {
      const int64_t m = std::min(x_rows, a.m - i);
      Operand x{static_cast<const char*>(a.x) + i * x_bytes, a.x_stride};
      if (!x_as_is) {
        DecodeRows(s, a.x_type, x.data, x_bytes, m, a.k, product_, x_room, stride);
        x = {x_room, stride};
      }
      char* out = static_cast<char*>(a.out) + RowBytes(a.out_type, i * a.out_stride + j);
      Product product{m, n, a.k, x, w, a.out_type, out, a.out_stride};
      if (a.addend != nullptr) {
        product.addend = a.addend + i * a.addend_stride + j;
        product.addend_stride = a.addend_stride;
      }
      Keep(plans_->Run(s, product_, product, workspace));
    }
  }
}

// True if the product can read such a matrix where it lies. cuBLASLt's fast kernels want rows at
// multiples of 16 bytes.
bool CudaMatMul::AsItIs(DType type, const void* data, int64_t row_bytes) const {
  return type == product_ && (type == DType::kF32 || Alignment(data, row_bytes) == 16);
}

}  // namespace toroid
