#include "kernels/dequantize.h"
#include "kernels/embedding.h"

namespace toroid {

template <typename T>
void Embed(ThreadPool& pool, const int32_t* ids, int64_t t, DType table_type, const void* table,
           int64_t table_stride, int64_t v, int64_t dim, int64_t vocab_begin, T* out,
           int64_t out_stride) {
  pool.ParallelFor(t, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = ids[i] - vocab_begin;
      T* to = out + i * out_stride;
      if (row < 0 || row >= v) {
        for (int64_t d = 0; d < dim; ++d) to[d] = 0;
      } else {
        const char* from =
            static_cast<const char*>(table) + row * RowBytes(table_type, table_stride);
        DecodeRow(table_type, from, 0, dim, to);
      }
    }
  });
}

template void Embed(ThreadPool&, const int32_t*, int64_t, DType, const void*, int64_t, int64_t,
                    int64_t, int64_t, float*, int64_t);
template void Embed(ThreadPool&, const int32_t*, int64_t, DType, const void*, int64_t, int64_t,
                    int64_t, int64_t, double*, int64_t);

}  // namespace toroid
