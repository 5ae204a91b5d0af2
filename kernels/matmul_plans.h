// Products by cuBLASLt, whose chosen algorithms are kept by shape. Included by matmul's CUDA files
// alone.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>
#include <utility>

#include "kernels/dtype.h"
#include "kernels/matmul.h"

namespace toroid {

// The workspace: cuBLASLt's own part first, then two rooms for converted operands.
inline constexpr int64_t kLibraryBytes = int64_t{32} << 20;
inline constexpr int64_t kSmallRoomBytes = int64_t{32} << 20;
inline constexpr int64_t kLargeRoomBytes = int64_t{64} << 20;
static_assert(kLibraryBytes + kSmallRoomBytes + kLargeRoomBytes == kMatMulWorkspaceBytes);

// The largest power of two up to 16 that divides the address and the distance of rows.
inline uint32_t Alignment(const void* data, int64_t stride_bytes) {
  uint32_t bytes = 16;
  while ((reinterpret_cast<uintptr_t>(data) | uintptr_t(stride_bytes)) % bytes != 0) bytes /= 2;
  return bytes;
}

// A row-major matrix; transposed: the product takes its transpose.
struct Operand {
  const void* data;
  int64_t stride;  // elements between rows
  bool transposed = false;
};

// C [rows, cols] = A [rows, depth] B [depth, cols], plus what C held with `add`, or plus the
// addend, of C's type; A, B of the product's type.
struct Product {
  int64_t rows, cols, depth;
  Operand a, b;
  DType c_type;  // kF32, kBF16
  void* c;
  int64_t c_stride;
  bool add = false;
  const void* addend = nullptr;  // null: none
  int64_t addend_stride = 0;

  // The matrix that the sum begins with.
  const void* start() const { return addend != nullptr ? addend : c; }
  int64_t start_stride() const { return addend != nullptr ? addend_stride : c_stride; }
};

// What an algorithm is chosen by.
struct PlanKey {
  PlanKey(const Product& p, DType type)
      : rows(p.rows),
        cols(p.cols),
        depth(p.depth),
        a_stride(p.a.stride),
        b_stride(p.b.stride),
        c_stride(p.c_stride),
        start_stride(p.start_stride()),
        a_align(Alignment(p.a.data, RowBytes(type, p.a.stride))),
        b_align(Alignment(p.b.data, RowBytes(type, p.b.stride))),
        c_align(std::min(Alignment(p.c, RowBytes(p.c_type, p.c_stride)),
                         Alignment(p.start(), RowBytes(p.c_type, p.start_stride())))),
        c_type(p.c_type),
        a_transposed(p.a.transposed),
        b_transposed(p.b.transposed) {}
  auto operator<=>(const PlanKey&) const = default;

  int64_t rows, cols, depth, a_stride, b_stride, c_stride, start_stride;
  uint32_t a_align, b_align, c_align;
  DType c_type;
  bool a_transposed, b_transposed;
};

inline cudaDataType_t LibraryType(DType type) {
  return type == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// One shape. cuBLASLt's matrices are column-major: C^T [cols, rows] = B^T A^T, of which row-major
// memory is the column-major picture.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, cudaDataType_t type, const PlanKey& key) {
    Try(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Transpose(CUBLASLT_MATMUL_DESC_TRANSA, key.b_transposed);
    Transpose(CUBLASLT_MATMUL_DESC_TRANSB, key.a_transposed);
    Layout(&b_, type, key.depth, key.cols, key.b_transposed, key.b_stride);
    Layout(&a_, type, key.rows, key.depth, key.a_transposed, key.a_stride);
    Layout(&start_, LibraryType(key.c_type), key.rows, key.cols, false, key.start_stride);
    Layout(&c_, LibraryType(key.c_type), key.rows, key.cols, false, key.c_stride);
    cublasLtMatmulPreference_t preference = nullptr;
    Try(cublasLtMatmulPreferenceCreate(&preference));
    const uint64_t bytes = kLibraryBytes;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      Try(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.c_align);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.c_align);
    int found = 0;
    Try(cublasLtMatmulAlgoGetHeuristic(handle, product_, b_, a_, start_, c_, preference,
                                       kMostCandidates, candidates_, &found));
    if (found == 0) Try(CUBLAS_STATUS_NOT_SUPPORTED);
    candidate_count_ = found;
    if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  }
  ~Plan() {
    if (product_ != nullptr) cublasLtMatmulDescDestroy(product_);
    for (cublasLtMatrixLayout_t layout : {a_, b_, start_, c_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  cublasStatus_t Run(cublasLtHandle_t handle, CudaStream s, const Product& p,
                     void* workspace) const {
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_;
    return RunAs(candidates_[0], handle, s, p, workspace);
  }

  // Puts the fastest of the candidates first, by doing p with each; the first time only. C holds
  // the product behind it.
  void Measure(cublasLtHandle_t handle, CudaStream s, const Product& p, void* workspace) {
    if (measured_ || status_ != CUBLAS_STATUS_SUCCESS) return;
    measured_ = true;
    cudaEvent_t begin = nullptr, end = nullptr;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    float least = 0;
    int best = 0;
    for (int i = 0; i < candidate_count_; ++i) {
      const auto run = [&] { return RunAs(candidates_[i], handle, s, p, workspace); };
      if (run() != CUBLAS_STATUS_SUCCESS) continue;
      cudaEventRecord(begin, s);
      for (int repeat = 0; repeat < 3; ++repeat) run();
      cudaEventRecord(end, s);
      float milliseconds = 0;
      cudaEventSynchronize(end);
      cudaEventElapsedTime(&milliseconds, begin, end);
      if (least == 0 || milliseconds < least) least = milliseconds, best = i;
    }
    std::swap(candidates_[0], candidates_[best]);
    cudaEventDestroy(begin), cudaEventDestroy(end);
  }

 private:
  static constexpr int kMostCandidates = 8;

  cublasStatus_t RunAs(const cublasLtMatmulHeuristicResult_t& candidate, cublasLtHandle_t handle,
                       CudaStream s, const Product& p, void* workspace) const {
    const float one = 1, kept = p.add || p.addend != nullptr ? 1 : 0;
    return cublasLtMatmul(handle, product_, &one, p.b.data, b_, p.a.data, a_, &kept, p.start(),
                          start_, p.c, c_, &candidate.algo, workspace, size_t(kLibraryBytes), s);
  }
  void Try(cublasStatus_t status) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }
  void Transpose(cublasLtMatmulDescAttributes_t name, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    Try(cublasLtMatmulDescSetAttribute(product_, name, &operation, sizeof(operation)));
  }
  // Of a matrix that the product takes as [rows, cols].
  void Layout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int64_t rows, int64_t cols,
              bool transposed, int64_t stride) {
    if (transposed) std::swap(rows, cols);
    Try(cublasLtMatrixLayoutCreate(layout, type, uint64_t(cols), uint64_t(rows), stride));
  }

  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, start_ = nullptr, c_ = nullptr;
  cublasLtMatmulHeuristicResult_t candidates_[kMostCandidates] = {};  // the first is in use
  int candidate_count_ = 0;
  bool measured_ = false;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
};

struct CudaMatMul::Plans {
  cublasLtHandle_t handle = nullptr;
  bool measures = false;
  std::map<PlanKey, Plan> by_shape;

  cublasStatus_t Run(CudaStream s, DType type, const Product& product, void* workspace) {
    constexpr size_t kMostPlans = 4096;  // prompts of ever new lengths
    if (by_shape.size() >= kMostPlans) by_shape.clear();
    const PlanKey key(product, type);
    Plan& plan = by_shape.try_emplace(key, handle, LibraryType(type), key).first->second;
    if (measures && Measurable(s, product)) plan.Measure(handle, s, product, workspace);
    return plan.Run(handle, s, product, workspace);
  }

  // Long enough for the choice to matter, free to be done again, and not being captured.
  static bool Measurable(CudaStream s, const Product& p) {
    const double flops = 2.0 * double(p.rows) * double(p.cols) * double(p.depth);
    if (flops < 4e9 || p.add || p.addend == p.c) return false;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(s, &capture) == cudaSuccess &&
           capture == cudaStreamCaptureStatusNone;
  }
};

}  // namespace toroid
