// Few rows go to our own matrix-vector kernels, more to cuBLASLt, on weights widened (or narrowed)
// into the workspace unless they can be multiplied as they lie.
#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/dequantize.h"
#include "kernels/device.cuh"
#include "kernels/matmul.h"
#include "kernels/matvec.cuh"

namespace toroid {

namespace {

// The workspace: cuBLASLt's own part first, then rows of x, then rows of w.
constexpr int64_t kLibraryBytes = int64_t{32} << 20;
constexpr int64_t kRowsOfXBytes = int64_t{32} << 20;
constexpr int64_t kRowsOfWBytes = int64_t{64} << 20;
static_assert(kLibraryBytes + kRowsOfXBytes + kRowsOfWBytes == kMatMulWorkspaceBytes);

// The largest power of two up to 16 that divides the address and the distance of rows.
uint32_t Alignment(const void* data, int64_t stride_bytes) {
  uint32_t bytes = 16;
  while ((reinterpret_cast<uintptr_t>(data) | uintptr_t(stride_bytes)) % bytes != 0) bytes /= 2;
  return bytes;
}

// A matrix of rows as cuBLASLt takes it.
struct Operand {
  const void* data;
  int64_t stride;  // elements
};

// What an algorithm is chosen by: m, n, k, strides of x, w, out, alignments of x, w, out.
using PlanKey =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t>;

// out [m, n] = x [m, k] w [n, k]^T. Row-major matrices are column-major transposed ones: out^T [n,
// m] = w [n, k] x^T [k, m].
class Plan {
 public:
  Plan(cublasLtHandle_t handle, cudaDataType_t type, const PlanKey& key) {
    const auto [m, n, k, x_stride, w_stride, out_stride, x_align, w_align, out_align] = key;
    Try(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    Try(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                       sizeof(transposed)));
    Try(cublasLtMatrixLayoutCreate(&w_, type, uint64_t(k), uint64_t(n), w_stride));
    Try(cublasLtMatrixLayoutCreate(&x_, type, uint64_t(k), uint64_t(m), x_stride));
    Try(cublasLtMatrixLayoutCreate(&out_, CUDA_R_32F, uint64_t(n), uint64_t(m), out_stride));
    cublasLtMatmulPreference_t preference = nullptr;
    Try(cublasLtMatmulPreferenceCreate(&preference));
    const uint64_t bytes = kLibraryBytes;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      Try(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_align);
    int found = 0;
    Try(cublasLtMatmulAlgoGetHeuristic(handle, product_, w_, x_, out_, out_, preference, 1,
                                       &chosen_, &found));
    if (found == 0) Try(CUBLAS_STATUS_NOT_SUPPORTED);
    if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  }
  ~Plan() {
    if (product_ != nullptr) cublasLtMatmulDescDestroy(product_);
    for (cublasLtMatrixLayout_t layout : {w_, x_, out_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  cublasStatus_t Run(cublasLtHandle_t handle, CudaStream s, const void* x, const void* w,
                     float* out, void* workspace) const {
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_;
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle, product_, &one, w, w_, x, x_, &zero, out, out_, out, out_,
                          &chosen_.algo, workspace, size_t(kLibraryBytes), s);
  }

 private:
  void Try(cublasStatus_t status) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }

  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, out_ = nullptr;
  cublasLtMatmulHeuristicResult_t chosen_ = {};
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

}  // namespace

struct CudaMatMul::Plans {
  cublasLtHandle_t handle = nullptr;
  std::map<PlanKey, Plan> by_shape;

  const Plan& Of(DType product, const PlanKey& key) {
    constexpr size_t kMostPlans = 4096;  // prompts of ever new lengths
    if (by_shape.size() >= kMostPlans) by_shape.clear();
    const cudaDataType_t type = product == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
    return by_shape.try_emplace(key, handle, type, key).first->second;
  }
};

CudaMatMul::CudaMatMul(DType product) : product_(product), plans_(std::make_unique<Plans>()) {
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

void CudaMatMul::Run(CudaStream s, const MatMulArgs<float>& args, void* workspace) {
  if (args.m == 0 || args.n == 0 || error_ != nullptr) return;
  if (args.m <= kMatVecRows) return MatVec(s, args);
  Product(s, args, static_cast<char*>(workspace));
  if (args.bias != nullptr) {
    AddBias(s, args.out, args.out_stride, args.m, args.n, args.bias_type, args.bias);
  }
}

// Cuts w by rows, and x too, so that what must be converted fits the workspace.
void CudaMatMul::Product(CudaStream s, const MatMulArgs<float>& a, char* workspace) {
  char* x_room = workspace + kLibraryBytes;
  char* w_room = x_room + kRowsOfXBytes;
  const int64_t w_bytes = RowBytes(a.w_type, a.w_stride);
  const bool x_as_is = product_ == DType::kF32;
  // cuBLASLt's fast kernels want rows at multiples of 16 bytes.
  const bool w_as_is = a.w_type == product_ && (x_as_is || Alignment(a.w, w_bytes) == 16);
  const int64_t stride = CeilDiv(a.k, 8) * 8, row_bytes = RowBytes(product_, stride);
  const int64_t w_rows = w_as_is ? a.n : std::min(a.n, kRowsOfWBytes / row_bytes);
  const int64_t x_rows = x_as_is ? a.m : std::min(a.m, kRowsOfXBytes / row_bytes);
  for (int64_t j = 0; j < a.n; j += w_rows) {
    const int64_t n = std::min(w_rows, a.n - j);
    Operand w{static_cast<const char*>(a.w) + j * w_bytes, a.w_stride};
    if (!w_as_is) {
      DecodeRows(s, a.w_type, w.data, w_bytes, n, a.k, product_, w_room, stride);
      w = {w_room, stride};
    }
    for (int64_t i = 0; i < a.m; i += x_rows) {
      const int64_t m = std::min(x_rows, a.m - i);
      Operand x{a.x + i * a.x_stride, a.x_stride};
      if (!x_as_is) {
        DecodeRows(s, DType::kF32, x.data, a.x_stride * 4, m, a.k, product_, x_room, stride);
        x = {x_room, stride};
      }
      float* out = a.out + i * a.out_stride + j;
      const PlanKey key{m,
                        n,
                        a.k,
                        x.stride,
                        w.stride,
                        a.out_stride,
                        Alignment(x.data, RowBytes(product_, x.stride)),
                        Alignment(w.data, RowBytes(product_, w.stride)),
                        Alignment(out, a.out_stride * 4)};
      Keep(plans_->Of(product_, key).Run(plans_->handle, s, x.data, w.data, out, workspace));
    }
  }
}

}  // namespace toroid
