#include "kernels/gemm_kernel.h"

namespace toroid {

const GemmKernels& GemmKernelsAvx512() {
  static constexpr GemmKernels kKernels = GemmLoops<16>::kTable;
  return kKernels;
}

}  // namespace toroid
