#include "kernels/attention_kernel.h"

namespace toroid {

const AttentionKernel<float>& AttentionAvx512() {
  static constexpr AttentionKernel<float> kKernel = {AttendBlock<float, 16>, BlockRows<float, 16>,
                                                     16};
  return kKernel;
}

}  // namespace toroid
