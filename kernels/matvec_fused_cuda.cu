#include "kernels/matvec_fused.cuh"

namespace toroid {

namespace {

bool OnBytes(const void* data, int64_t stride_bytes, uintptr_t bytes) {
  return (reinterpret_cast<uintptr_t>(data) | uintptr_t(stride_bytes)) % bytes == 0;
}

bool WeightsFit(const MatMulArgs<float>& p) {
  switch (p.w_type) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
      return OnBytes(p.w, RowBytes(p.w_type, p.w_stride), 16);
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      return OnBytes(p.w, RowBytes(p.w_type, p.w_stride), 4);
    default:
      return false;
  }
}

}  // namespace

bool CanFuse(const MatMulArgs<float>& p) {
  return p.m >= 1 && p.m <= kMatVecRows && p.n >= 1 && p.k % kUnit == 0 && p.k >= kUnit &&
         p.k < (int64_t{1} << 30) && OnBytes(p.x, p.m == 1 ? 0 : p.x_stride * 4, 16) &&
         WeightsFit(p);
}

void FusedMatVec(CudaStream s, const FusedMatVecArgs& args, bool overlap) {
  switch (args.products[0].w_type) {
    case DType::kF32:
      return LaunchOf<DType::kF32>(s, args, overlap);
    case DType::kBF16:
      return LaunchOf<DType::kBF16>(s, args, overlap);
    case DType::kF16:
      return LaunchOf<DType::kF16>(s, args, overlap);
    default:
      return FusedMatVecQuantised(s, args, overlap);
  }
}

}  // namespace toroid
