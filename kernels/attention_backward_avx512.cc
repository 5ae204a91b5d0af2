#include "kernels/attention_backward_kernel.h"

namespace toroid {

AttentionBackwardKernel<float> AttentionBackwardAvx512() { return AttendBlockBackward<float, 16>; }

}  // namespace toroid
