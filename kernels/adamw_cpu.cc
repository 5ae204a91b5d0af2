#include <cmath>

#include "kernels/adamw.h"

namespace toroid {

template <typename T>
void AdamW(ThreadPool& pool, const AdamWSpec& spec, const AdamWStep* step, int64_t n,
           const T* gradient, T* w, T* m, T* v) {
  const T beta1 = T(spec.beta1), beta2 = T(spec.beta2), epsilon = T(spec.epsilon);
  const T fresh1 = T(1 - spec.beta1), fresh2 = T(1 - spec.beta2);
  const T scale = T(step->gradient_scale), kept = T(1 - step->shrink);
  const T size = T(step->learning_rate / step->m_correction);
  const T v_factor = T(1 / step->v_correction);
  pool.ParallelFor(n, 16384, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T g = gradient[i] * scale;
      m[i] = beta1 * m[i] + fresh1 * g;
      v[i] = beta2 * v[i] + fresh2 * g * g;
      w[i] = kept * w[i] - size * m[i] / (std::sqrt(v[i] * v_factor) + epsilon);
    }
  });
}

template void AdamW(ThreadPool&, const AdamWSpec&, const AdamWStep*, int64_t, const float*, float*,
                    float*, float*);
template void AdamW(ThreadPool&, const AdamWSpec&, const AdamWStep*, int64_t, const double*,
                    double*, double*, double*);

}  // namespace toroid
