#include <cmath>

#include "kernels/adafactor.h"

namespace toroid {

template <typename T>
void Adafactor(ThreadPool& pool, const AdafactorSpec& spec, const AdafactorStep* step, int64_t n,
               const T* gradient, T* w, T* m, T* v) {
  const T beta1 = T(spec.beta1), fresh1 = T(1 - spec.beta1), epsilon = T(spec.epsilon);
  const T beta2 = T(step->beta2), fresh2 = T(1 - step->beta2);
  const T scale = T(step->gradient_scale), size = T(step->step_size), kept = T(1 - step->shrink);
  pool.ParallelFor(n, 16384, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T g = gradient[i] * scale;
      v[i] = beta2 * v[i] + fresh2 * (g * g + epsilon);
      m[i] = beta1 * m[i] + fresh1 * (g / std::sqrt(v[i]));
      w[i] = kept * w[i] - size * m[i];
    }
  });
}

template void Adafactor(ThreadPool&, const AdafactorSpec&, const AdafactorStep*, int64_t,
                        const float*, float*, float*, float*);
template void Adafactor(ThreadPool&, const AdafactorSpec&, const AdafactorStep*, int64_t,
                        const double*, double*, double*, double*);

}  // namespace toroid
