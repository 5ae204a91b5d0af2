#include "kernels/isa.h"
#include "kernels/row_kernels_loops.h"

namespace toroid {

const RowKernels& CurrentRowKernels() {
  static constexpr RowKernels kScalar = MakeRowKernels<4>();
  switch (CurrentIsa()) {
    case Isa::kAvx512:
      return RowKernelsAvx512();
    case Isa::kAvx2:
      return RowKernelsAvx2();
    case Isa::kScalar:
      break;
  }
  return kScalar;
}

}  // namespace toroid
