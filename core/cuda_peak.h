// What a GPU can do at best, by its maker's data sheet: the peak that MFU is a share of.
#pragma once

#include "kernels/dtype.h"

namespace toroid {

// FLOP/s of dense products with operands of `product`, kBF16 on tensor cores or kF32 without them
// (TF32 off): the data sheet's of A100, H100 and H200, B200, by the multiprocessors that this
// device has. 0: another kind of device, or a build without CUDA.
double CudaPeakFlops(int device, DType product);

}  // namespace toroid
