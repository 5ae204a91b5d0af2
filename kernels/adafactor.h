// Adafactor as PaLM used it (Chowdhery et al. 2022, section 5): second moments not factored, so it
// is Adam without bias corrections whose step is scaled by the size of the parameter (Shazeer &
// Stern 2018, section 8). Element by element over a flat range that belongs to one parameter:
//   g = gradient_scale gradient
//   v = beta2 v + (1 - beta2) (g^2 + epsilon)
//   m = beta1 m + (1 - beta1) g / sqrt(v)
//   w = (1 - shrink) w - step_size m
// PaLM in step k = 1, 2, ...: beta1 = 0.9, beta2 = 1 - k^-0.8, lr = 0.01 up to k = 10,000 and then
// 1 / sqrt(k), shrink = lr^2, step_size = lr max(1e-3, RMS(w)) with the RMS of the whole parameter.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/optimizer_step.h"
#include "kernels/thread_pool.h"

namespace toroid {

// w, gradient, m, v: [n].
template <typename T>
void Adafactor(ThreadPool& pool, const AdafactorSpec& spec, const AdafactorStep* step, int64_t n,
               const T* gradient, T* w, T* m, T* v);

// step: device memory.
void Adafactor(CudaStream s, const AdafactorSpec& spec, const AdafactorStep* step, int64_t n,
               const float* gradient, float* w, float* m, float* v);

}  // namespace toroid
