#include "kernels/exchange_loops_kernel.h"
#include "kernels/isa.h"

namespace toroid {

const ExchangeLoops& CurrentExchangeLoops() {
  switch (CurrentIsa()) {
    case Isa::kAvx512:
      return ExchangeLoopsAvx512();
    case Isa::kAvx2:
      return ExchangeLoopsAvx2();
    case Isa::kScalar:
      break;
  }
  return kExchangeLoops;
}

}  // namespace toroid
