// AdamW (Kingma & Ba 2015, algorithm 1; decoupled decay: Loshchilov & Hutter 2019, algorithm 2)
// over a flat range of weights. Element by element, so any split of the weights gives the same
// bits.
//   g = gradient_scale gradient
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   w = (1 - shrink) w - learning_rate (m / m_correction) / (sqrt(v / v_correction) + epsilon)
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/optimizer_step.h"
#include "kernels/thread_pool.h"

namespace toroid {

// w, gradient, m, v: [n].
template <typename T>
void AdamW(ThreadPool& pool, const AdamWSpec& spec, const AdamWStep* step, int64_t n,
           const T* gradient, T* w, T* m, T* v);

// step: device memory.
void AdamW(CudaStream s, const AdamWSpec& spec, const AdamWStep* step, int64_t n,
           const float* gradient, float* w, float* m, float* v);

}  // namespace toroid
