#include "kernels/attention_merge.h"
#include "kernels/device.cuh"

namespace toroid {

namespace {

// A warp per row; the parts are taken in order, so all who merge the same parts hold the same bits.
__global__ void MergeKernel(MergeArgs<float> a) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= a.rows) return;
  const int64_t token = row / a.heads, head = row % a.heads;
  float* o = a.o + token * a.o_stride + head * a.dim;
  float* lse_out = a.lse == nullptr ? nullptr : a.lse + token * a.lse_stride + head;
  const float carried = a.carry ? *lse_out : -INFINITY;
  float max = carried;
  for (int64_t i = 0; i < a.parts; ++i) {
    max = fmaxf(max, a.lse_parts[i * a.lse_part_stride + row]);
  }
  if (max == -INFINITY) {
    if (a.carry) return;
    for (int64_t d = threadIdx.x; d < a.dim; d += kWarp) o[d] = 0;
    if (lse_out != nullptr && threadIdx.x == 0) *lse_out = -INFINITY;
    return;
  }
  float sum = a.carry ? expf(carried - max) : 0.0f;
  for (int64_t i = 0; i < a.parts; ++i) {
    sum += expf(a.lse_parts[i * a.lse_part_stride + row] - max);
  }
  const float lse = max + logf(sum);
  const float first = a.carry ? expf(carried - lse) : 0.0f;
  for (int64_t d = threadIdx.x; d < a.dim; d += kWarp) {
    float total = a.carry ? o[d] * first : 0.0f;
    for (int64_t i = 0; i < a.parts; ++i) {
      const float weight = expf(a.lse_parts[i * a.lse_part_stride + row] - lse);
      if (weight == 0) continue;
      total += weight * a.o_parts[i * a.o_part_stride + row * a.dim + d];
    }
    o[d] = total;
  }
  __syncwarp();  // waits for every lane's reading of the carried lse
  if (lse_out != nullptr && threadIdx.x == 0) *lse_out = lse;
}

}  // namespace

void AttentionMerge(CudaStream s, const MergeArgs<float>& args) {
  if (args.rows == 0) return;
  constexpr int kRows = 4;
  MergeKernel<<<unsigned(CeilDiv(args.rows, kRows)), dim3(kWarp, kRows), 0, s>>>(args);
}

}  // namespace toroid
