#include "kernels/exchange_loops_kernel.h"

namespace toroid {

const ExchangeLoops& ExchangeLoopsAvx2() { return kExchangeLoops; }

}  // namespace toroid
