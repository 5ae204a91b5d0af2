#include "kernels/attention_kernel.h"

namespace toroid {

const AttentionKernel<float>& AttentionAvx2() {
  static constexpr AttentionKernel<float> kKernel = {AttendBlock<float, 8>, BlockRows<float, 8>, 8};
  return kKernel;
}

}  // namespace toroid
