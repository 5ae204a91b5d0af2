#include "kernels/exchange_loops_kernel.h"

namespace toroid {

const ExchangeLoops& ExchangeLoopsAvx512() { return kExchangeLoops; }

}  // namespace toroid
