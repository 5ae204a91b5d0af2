#include "kernels/matvec_fused.cuh"

namespace toroid {

void FusedMatVecQuantised(CudaStream s, const FusedMatVecArgs& args, bool overlap) {
  switch (args.products[0].w_type) {
    case DType::kQ8_0:
      return LaunchOf<DType::kQ8_0>(s, args, overlap);
    case DType::kQ4_0:
      return LaunchOf<DType::kQ4_0>(s, args, overlap);
    case DType::kQ4_1:
      return LaunchOf<DType::kQ4_1>(s, args, overlap);
    default:
      return;
  }
}

}  // namespace toroid
