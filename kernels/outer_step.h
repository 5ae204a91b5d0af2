// The outer step of pods that train on their own and exchange weight deltas (DiLoCo, Douillard et
// al. 2311.08105, algorithm 1): SGD with Nesterov's momentum over the mean delta, as
// torch.optim.SGD(nesterov=True) has it. Elementwise, on the host, the same bits on every
// instruction set.
//   delta = theta - (what the inner steps made of it), the mean over pods
//   v     = momentum v + delta
//   theta = theta - learning_rate (momentum v + delta)
// and what a pod goes on with where the outer step is applied late (Streaming DiLoCo, Douillard et
// al. 2501.18512, algorithm 2): own = alpha own + (1 - alpha) theta.
#pragma once

#include <cstdint>

#include "kernels/thread_pool.h"

namespace toroid {

struct OuterStepSpec {
  double learning_rate = 0.7, momentum = 0.9;
};

// theta, v, delta: [n].
template <typename T>
void OuterStep(ThreadPool& pool, const OuterStepSpec& spec, int64_t n, const T* delta, T* theta,
               T* v);

// own, theta: [n]. alpha 1 leaves `own` and alpha 0 takes theta, bit for bit.
template <typename T>
void MixWeights(ThreadPool& pool, double alpha, int64_t n, const T* theta, T* own);

}  // namespace toroid
