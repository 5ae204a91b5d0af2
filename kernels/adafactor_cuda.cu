#include "kernels/adafactor.h"
#include "kernels/device.cuh"

namespace toroid {

namespace {

struct AdafactorElement {
  float beta1, fresh1, epsilon;
  const AdafactorStep* step;
  const float* gradient;
  float* w;
  float* m;
  float* v;
  __device__ void operator()(int64_t, int64_t i) const {
    const float g = gradient[i] * float(step->gradient_scale);
    const float second = float(step->beta2) * v[i] + float(1 - step->beta2) * (g * g + epsilon);
    const float moment = beta1 * m[i] + fresh1 * (g / sqrtf(second));
    v[i] = second;
    m[i] = moment;
    w[i] = float(1 - step->shrink) * w[i] - float(step->step_size) * moment;
  }
};

}  // namespace

void Adafactor(CudaStream s, const AdafactorSpec& spec, const AdafactorStep* step, int64_t n,
               const float* gradient, float* w, float* m, float* v) {
  ForEach(s, 1, n,
          AdafactorElement{float(spec.beta1), float(1 - spec.beta1), float(spec.epsilon), step,
                           gradient, w, m, v});
}

}  // namespace toroid
