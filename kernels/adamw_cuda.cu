#include "kernels/adamw.h"
#include "kernels/device.cuh"

namespace toroid {

namespace {

struct AdamWElements {
  float beta1, beta2, fresh1, fresh2, epsilon;
  const AdamWStep* step;
  const float* gradient;
  float* w;
  float* m;
  float* v;
  template <int kWidth>
  __device__ void At(int64_t, int64_t first) const {
    const float scale = float(step->gradient_scale), kept = float(1 - step->shrink);
    const float size = float(step->learning_rate / step->m_correction);
    const float correction = float(1 / step->v_correction);
    float g[kWidth], weight[kWidth], moment[kWidth], second[kWidth];
    LoadWide(gradient + first, g);
    LoadWide(w + first, weight);
    LoadWide(m + first, moment);
    LoadWide(v + first, second);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      g[i] *= scale;
      moment[i] = beta1 * moment[i] + fresh1 * g[i];
      second[i] = beta2 * second[i] + fresh2 * g[i] * g[i];
      const float corrected = second[i] * correction;
      weight[i] = kept * weight[i] - size * moment[i] / (sqrtf(corrected) + epsilon);
    }
    StoreWide(moment, m + first);
    StoreWide(second, v + first);
    StoreWide(weight, w + first);
  }
};

}  // namespace

void AdamW(CudaStream s, const AdamWSpec& spec, const AdamWStep* step, int64_t n,
           const float* gradient, float* w, float* m, float* v) {
  const bool eights = TakesEights(gradient, 0, n) && TakesEights(w, 0, n) && TakesEights(m, 0, n) &&
                      TakesEights(v, 0, n);
  ForEachWide(s, eights, 1, n,
              AdamWElements{float(spec.beta1), float(spec.beta2), float(1 - spec.beta1),
                            float(1 - spec.beta2), float(spec.epsilon), step, gradient, w, m, v});
}

}  // namespace toroid
