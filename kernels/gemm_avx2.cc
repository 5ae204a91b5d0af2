#include "kernels/gemm_kernel.h"

namespace toroid {

const GemmKernels& GemmKernelsAvx2() {
  static constexpr GemmKernels kKernels = GemmLoops<8>::kTable;
  return kKernels;
}

}  // namespace toroid
