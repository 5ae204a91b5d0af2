#include "kernels/adamw.h"
#include "kernels/device.cuh"

namespace toroid {

namespace {

struct AdamWElement {
  float beta1, beta2, fresh1, fresh2, epsilon;
  const AdamWStep* step;
  const float* gradient;
  float* w;
  float* m;
  float* v;
  __device__ void operator()(int64_t, int64_t i) const {
    const float g = gradient[i] * float(step->gradient_scale);
    const float moment = beta1 * m[i] + fresh1 * g;
    const float second = beta2 * v[i] + fresh2 * g * g;
    const float size = float(step->learning_rate / step->m_correction);
    const float corrected = second * float(1 / step->v_correction);
    m[i] = moment;
    v[i] = second;
    w[i] = float(1 - step->shrink) * w[i] - size * moment / (sqrtf(corrected) + epsilon);
  }
};

}  // namespace

void AdamW(CudaStream s, const AdamWSpec& spec, const AdamWStep* step, int64_t n,
           const float* gradient, float* w, float* m, float* v) {
  ForEach(s, 1, n,
          AdamWElement{float(spec.beta1), float(spec.beta2), float(1 - spec.beta1),
                       float(1 - spec.beta2), float(spec.epsilon), step, gradient, w, m, v});
}

}  // namespace toroid
