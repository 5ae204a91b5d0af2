#include "kernels/attention_backward_kernel.h"

namespace toroid {

AttentionBackwardKernel<float> AttentionBackwardAvx2() { return AttendBlockBackward<float, 8>; }

}  // namespace toroid
