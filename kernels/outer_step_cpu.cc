#include <algorithm>

#include "kernels/outer_step.h"

namespace toroid {
namespace {

constexpr int64_t kGrain = 16384;

}  // namespace

template <typename T>
void OuterStep(ThreadPool& pool, const OuterStepSpec& spec, int64_t n, const T* delta, T* theta,
               T* v) {
  const T rate = T(spec.learning_rate), momentum = T(spec.momentum);
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      v[i] = momentum * v[i] + delta[i];
      theta[i] = theta[i] - rate * (momentum * v[i] + delta[i]);
    }
  });
}

template <typename T>
void MixWeights(ThreadPool& pool, double alpha, int64_t n, const T* theta, T* own) {
  if (alpha == 1) return;
  const T kept = T(alpha), taken = T(1 - alpha);
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end, int) {
    if (alpha == 0) {
      std::copy(theta + begin, theta + end, own + begin);
      return;
    }
    for (int64_t i = begin; i < end; ++i) own[i] = kept * own[i] + taken * theta[i];
  });
}

#define TOROID_INSTANTIATE(T)                                                            \
  template void OuterStep(ThreadPool&, const OuterStepSpec&, int64_t, const T*, T*, T*); \
  template void MixWeights(ThreadPool&, double, int64_t, const T*, T*);
TOROID_INSTANTIATE(float)
TOROID_INSTANTIATE(double)
#undef TOROID_INSTANTIATE

}  // namespace toroid
