// What the cores can do at best: the bound of products, and the peak that MFU is a share of.
#pragma once

#include <functional>

#include "kernels/thread_pool.h"

namespace toroid {

// FLOP/s of independent fused multiply-adds of floats in registers, in the vectors of CurrentIsa(),
// on all threads of the pool: the best of several runs, which take `seconds` together, or a little
// more. clock: seconds that go by. One thread at a time.
double BestFmaRate(ThreadPool& pool, double seconds, const std::function<double()>& clock);

}  // namespace toroid
