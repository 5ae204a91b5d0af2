#include "kernels/device.cuh"
#include "kernels/kv_write.h"

namespace toroid {

namespace {

template <typename To>
struct WriteElement {
  const float* x;
  int64_t x_stride;
  const int64_t* slots;
  To* cache;
  int64_t cache_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const int64_t slot = slots[row];
    if (slot < 0) return;
    cache[slot * cache_stride + col] = Convert<To>(x[row * x_stride + col]);
  }
};

}  // namespace

void KvWrite(CudaStream s, const float* x, int64_t x_stride, int64_t t, int64_t cols,
             const int64_t* slots, DType cache_type, void* cache, int64_t cache_stride) {
  const auto write = [&](auto* to) {
    using To = std::remove_reference_t<decltype(*to)>;
    ForEach(s, t, cols, WriteElement<To>{x, x_stride, slots, to, cache_stride});
  };
  if (cache_type == DType::kF32) write(static_cast<float*>(cache));
  if (cache_type == DType::kF64) write(static_cast<double*>(cache));
  if (cache_type == DType::kBF16) write(static_cast<__nv_bfloat16*>(cache));
}

}  // namespace toroid
