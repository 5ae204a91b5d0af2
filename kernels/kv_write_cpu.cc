#include "kernels/elementwise.h"
#include "kernels/kv_write.h"

namespace toroid {

void KvWrite(ThreadPool& pool, DType x_type, const void* x, int64_t x_stride, int64_t t,
             int64_t cols, const int64_t* slots, DType cache_type, void* cache,
             int64_t cache_stride) {
  pool.ParallelFor(t, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (slots[i] < 0) continue;
      ConvertRow(x_type, static_cast<const char*>(x) + i * RowBytes(x_type, x_stride), cache_type,
                 static_cast<char*>(cache) + slots[i] * RowBytes(cache_type, cache_stride), cols);
    }
  });
}

}  // namespace toroid
