// out [m, n] = x [m, k] w [n, k]^T + bias [n].
//
// w is read as stored: f32, f64, f16, bf16, q8_0, q4_0 or q4_1 (IsStoredWeight), widened exactly;
// products and sums are in T. Up to kMatVecRows rows go to matrix-vector code, which reads every
// weight once at its stored size; more rows to gemm.h, of float64 to OpenBLAS on panels of widened
// weights, single-threaded inside each worker.
//
// The work is cut by shape alone: any number of threads gives the same bits. A row of the result
// does not depend on the other rows beyond rounding: the two ways, and in them different m, add the
// k products in different orders.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

inline constexpr int64_t kMatVecRows = 8;

template <typename T>
struct MatMulArgs {
  const T* x = nullptr;
  int64_t x_stride = 0;  // elements between rows; so everywhere
  int64_t m = 0, n = 0, k = 0;
  DType w_type = DType::kF32;
  const void* w = nullptr;
  int64_t w_stride = 0;        // of quantised weights: k
  const void* bias = nullptr;  // f32 or f64, may be null
  DType bias_type = DType::kF32;
  T* out = nullptr;
  int64_t out_stride = 0;
};

void MatMul(ThreadPool& pool, const MatMulArgs<float>& args);
void MatMul(ThreadPool& pool, const MatMulArgs<double>& args);

// Backward of out = x w^T + bias:
//   dx [m, k]  = dout [m, n] w [n, k]      written, or added to with add_dx
//   dw [n, k] += dout [m, n]^T x [m, k]    added to
//   dbias [n] += sum over rows of dout     added to
// Null: not wanted; then what it alone reads (w for dx, x for dw) may be null too. Cut by shape
// alone: any number of threads gives the same bits. dx is not dout, and x only where dw is not
// wanted.
template <typename T>
struct MatMulBackwardArgs {
  const T* x = nullptr;
  int64_t x_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  DType w_type = DType::kF32;
  const void* w = nullptr;
  int64_t w_stride = 0;
  const T* dout = nullptr;
  int64_t dout_stride = 0;
  bool add_dx = false;
  T* dx = nullptr;
  int64_t dx_stride = 0;
  T* dw = nullptr;
  int64_t dw_stride = 0;
  T* dbias = nullptr;
};

void MatMulBackward(ThreadPool& pool, const MatMulBackwardArgs<float>& args);
void MatMulBackward(ThreadPool& pool, const MatMulBackwardArgs<double>& args);

inline constexpr int64_t kMatMulWorkspaceBytes = int64_t{128} << 20;

// The operands on a CUDA device, where activations are f32, or bf16 beside a product in bf16: x and
// out each of its own type, in the backward x, dout and dx; dw and dbias f32. Else as above.
struct CudaMatMulArgs {
  DType x_type = DType::kF32;
  const void* x = nullptr;
  int64_t x_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  DType w_type = DType::kF32;
  const void* w = nullptr;
  int64_t w_stride = 0;
  const void* bias = nullptr;
  DType bias_type = DType::kF32;
  const float* addend =
      nullptr;  // [m, n] of m > kMatVecRows: added, out f32; may be out; null: none
  int64_t addend_stride = 0;
  DType out_type = DType::kF32;
  void* out = nullptr;
  int64_t out_stride = 0;
};
struct CudaMatMulBackwardArgs {
  DType x_type = DType::kF32;
  const void* x = nullptr;
  int64_t x_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  DType w_type = DType::kF32;
  const void* w = nullptr;
  int64_t w_stride = 0;
  DType dout_type = DType::kF32;
  const void* dout = nullptr;
  int64_t dout_stride = 0;
  bool add_dx = false;
  DType dx_type = DType::kF32;
  void* dx = nullptr;
  int64_t dx_stride = 0;
  float* dw = nullptr;
  int64_t dw_stride = 0;
  float* dbias = nullptr;
};

// The same product on one CUDA device: up to kMatVecRows rows of f32 by our own kernels, as on a
// CPU; more rows, and the backward, by cuBLASLt, whose chosen algorithms are kept by shape.
// `product` is the type that matrices are multiplied in, while sums are float32: kF32 (without
// TF32), or kBF16, which rounds wider operands to bf16. One thread at a time.
//
// measures: where cuBLASLt knows several algorithms for a long product, each is timed when a shape
// is first seen, and the fastest is kept. The choice, and with it the last bits, may then differ
// from one such object to another.
class CudaMatMul {
 public:
  CudaMatMul(DType product, bool measures);  // the device is current
  ~CudaMatMul();
  CudaMatMul(const CudaMatMul&) = delete;
  CudaMatMul& operator=(const CudaMatMul&) = delete;

  // workspace: kMatMulWorkspaceBytes, 256-byte aligned, that no other work uses meanwhile.
  void Run(CudaStream s, const CudaMatMulArgs& args, void* workspace);
  void RunBackward(CudaStream s, const CudaMatMulBackwardArgs& args, void* workspace);
  // cuBLASLt's first error, by name; null: none.
  const char* error() const { return error_; }

 private:
  struct Plans;
  void Keep(int status);
  bool AsItIs(DType type, const void* data, int64_t row_bytes) const;
  void Forward(CudaStream s, const CudaMatMulArgs& args, char* workspace);
  void InputGradient(CudaStream s, const CudaMatMulBackwardArgs& args, char* workspace);
  void WeightGradient(CudaStream s, const CudaMatMulBackwardArgs& args, char* workspace);

  const DType product_;
  const char* error_ = nullptr;
  std::unique_ptr<Plans> plans_;
};

}  // namespace toroid
