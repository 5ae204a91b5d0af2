#include "kernels/cross_entropy.h"
#include "kernels/device.cuh"

namespace toroid {

namespace {

constexpr int kThreads = 256;

struct Folded {
  double max = -INFINITY, sum = 0;
  __device__ void Add(double other_max, double other_sum) {
    if (other_max == -INFINITY) return;
    const double both = fmax(max, other_max);
    const double kept = max == -INFINITY ? 0.0 : sum * exp(max - both);
    sum = kept + other_sum * exp(other_max - both);
    max = both;
  }
};

// A block per row, read once: each thread's sum goes with its maximum so far.
template <int kWidth>
__global__ void StatisticsKernel(const float* logits, int64_t stride, int64_t n,
                                 int64_t vocab_begin, const int32_t* labels, double* stat) {
  __shared__ float shared_max[kThreads / kWarp];
  __shared__ double shared_sum[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* x = logits + row * stride;
  float own = -INFINITY, value[kWidth];
  double own_sum = 0;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < n; i += kThreads * kWidth) {
    LoadWide(x + i, value);
    float higher = own;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) higher = fmaxf(higher, value[j]);
    if (higher > own) {
      own_sum *= double(expf(own - higher));
      own = higher;
    }
    const float base = own == -INFINITY ? 0.0f : own;
    float few = 0;  // of so few terms, each at most 1, float32 is near enough
#pragma unroll
    for (int j = 0; j < kWidth; ++j) few += expf(value[j] - base);
    own_sum += double(few);
  }
  const float max = BlockMax<kThreads>(own, shared_max);
  if (own != -INFINITY) own_sum *= double(expf(own - max));
  const double sum = BlockSum<kThreads>(own_sum, shared_sum);
  if (threadIdx.x != 0) return;
  double* out = stat + row * 3;
  Folded folded{out[0], out[1]};
  folded.Add(double(max), sum);
  out[0] = folded.max, out[1] = folded.sum;
  const int64_t label = labels[row] - vocab_begin;
  if (label >= 0 && label < n) out[2] = double(x[label]);
}

struct MergeShards {
  const double* parts;
  int64_t n, t;
  double* log_p;
  double* log_z;
  __device__ void operator()(int64_t i, int64_t) const {
    Folded folded;
    double label = -INFINITY;
    for (int64_t part = 0; part < n; ++part) {
      const double* s = parts + (part * t + i) * 3;
      folded.Add(s[0], s[1]);
      label = fmax(label, s[2]);
    }
    log_z[i] = folded.max == -INFINITY ? -INFINITY : folded.max + log(folded.sum);
    log_p[i] = label == -INFINITY ? -INFINITY : label - log_z[i];
  }
};

// log Z = ln sum_j e^logit_j  and  log p = label's logit - log Z
template <typename E>
struct VocabBackwardElements {
  const float* logits;
  int64_t stride, vocab_begin;
  const int32_t* labels;
  const double* log_z;
  const double* d_log_p;
  const double* d_log_z;
  E* dlogits;
  int64_t dlogits_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    const double z = log_z[row], d = d_log_p[row];
    const float factor = float(d_log_z[row] - d);
    const int64_t label = labels[row] - vocab_begin - col;
    float x[kWidth];
    LoadWide(logits + row * stride + col, x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float p = expf(float(double(x[i]) - z));
      x[i] = (i == label ? float(d) : 0.0f) + factor * p;
    }
    StoreWide(x, dlogits + row * dlogits_stride + col);
  }
};

struct LossBackwardElement {
  const int32_t* labels;
  const double* weights;
  double zeta;
  const double* log_z;
  double* d_log_p;
  double* d_log_z;
  __device__ void operator()(int64_t i, int64_t) const {
    const double weight = labels[i] < 0 ? 0.0 : weights[i];
    d_log_p[i] = -weight;
    d_log_z[i] = 2 * zeta * weight * log_z[i];
  }
};

}  // namespace

void VocabStatistics(CudaStream s, const float* logits, int64_t stride, int64_t t, int64_t n,
                     int64_t vocab_begin, const int32_t* labels, double* stat) {
  if (n == 0 || t == 0) return;
  const auto kernel = TakesEights(logits, stride, n) ? StatisticsKernel<8> : StatisticsKernel<1>;
  kernel<<<unsigned(t), kThreads, 0, s>>>(logits, stride, n, vocab_begin, labels, stat);
}

void VocabMerge(CudaStream s, const double* parts, int64_t n, int64_t t, double* log_p,
                double* log_z) {
  ForEach(s, t, 1, MergeShards{parts, n, t, log_p, log_z});
}

void VocabBackward(CudaStream s, const float* logits, int64_t stride, int64_t t, int64_t n,
                   int64_t vocab_begin, const int32_t* labels, const double* log_z,
                   const double* d_log_p, const double* d_log_z, DType type, void* dlogits,
                   int64_t dlogits_stride) {
  WithActivation(type, [&]<typename E>(E) {
    E* out = static_cast<E*>(dlogits);
    const bool eights = TakesEights(logits, stride, n) && TakesEights(out, dlogits_stride, n);
    ForEachWide(s, eights, t, n,
                VocabBackwardElements<E>{logits, stride, vocab_begin, labels, log_z, d_log_p,
                                         d_log_z, out, dlogits_stride});
  });
}

void LossBackward(CudaStream s, const int32_t* labels, const double* weights, double zeta,
                  const double* log_z, int64_t t, double* d_log_p, double* d_log_z) {
  ForEach(s, t, 1, LossBackwardElement{labels, weights, zeta, log_z, d_log_p, d_log_z});
}

}  // namespace toroid
