#include "kernels/device.cuh"
#include "kernels/kv_write.h"

namespace toroid {

namespace {

template <typename From, typename To>
struct WriteElement {
  const From* x;
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

void KvWrite(CudaStream s, DType x_type, const void* x, int64_t x_stride, int64_t t, int64_t cols,
             const int64_t* slots, DType cache_type, void* cache, int64_t cache_stride) {
  const auto write = [&](const auto* from, auto* to) {
    using From = std::remove_cv_t<std::remove_reference_t<decltype(*from)>>;
    using To = std::remove_reference_t<decltype(*to)>;
    ForEach(s, t, cols, WriteElement<From, To>{from, x_stride, slots, to, cache_stride});
  };
  const auto write_to = [&](auto* to) {
    if (x_type == cache_type) {
      write(static_cast<decltype(to)>(const_cast<void*>(x)), to);
    } else {
      write(static_cast<const float*>(x), to);
    }
  };
  if (cache_type == DType::kF32) write_to(static_cast<float*>(cache));
  if (cache_type == DType::kF64) write_to(static_cast<double*>(cache));
  if (cache_type == DType::kBF16) write_to(static_cast<__nv_bfloat16*>(cache));
}

}  // namespace toroid
