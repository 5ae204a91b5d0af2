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

// Two tokens may share a row of the table but not a column range: each chunk adds all tokens to its
// own columns.
template <typename T>
void EmbedBackward(ThreadPool& pool, const int32_t* ids, int64_t t, const T* dout,
                   int64_t dout_stride, int64_t v, int64_t dim, int64_t vocab_begin, T* dtable,
                   int64_t dtable_stride) {
  pool.ParallelFor(dim, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = 0; i < t; ++i) {
      const int64_t row = ids[i] - vocab_begin;
      if (row < 0 || row >= v) continue;
      T* to = dtable + row * dtable_stride;
      const T* from = dout + i * dout_stride;
      for (int64_t d = begin; d < end; ++d) to[d] += from[d];
    }
  });
}

template void EmbedBackward(ThreadPool&, const int32_t*, int64_t, const float*, int64_t, int64_t,
                            int64_t, int64_t, float*, int64_t);
template void EmbedBackward(ThreadPool&, const int32_t*, int64_t, const double*, int64_t, int64_t,
                            int64_t, int64_t, double*, int64_t);
template void Embed(ThreadPool&, const int32_t*, int64_t, DType, const void*, int64_t, int64_t,
                    int64_t, int64_t, float*, int64_t);
template void Embed(ThreadPool&, const int32_t*, int64_t, DType, const void*, int64_t, int64_t,
                    int64_t, int64_t, double*, int64_t);

}  // namespace toroid
