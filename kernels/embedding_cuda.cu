#include "kernels/embedding.h"
#include "kernels/stored_weight.cuh"

namespace toroid {

namespace {

// A thread per unit of a token's row.
template <DType kType>
struct EmbedUnit {
  const int32_t* ids;
  const uint8_t* table;
  int64_t row_bytes, v, dim, vocab_begin;
  float* out;
  int64_t out_stride;
  __device__ void operator()(int64_t token, int64_t unit) const {
    const int64_t row = ids[token] - vocab_begin;
    float values[kUnit] = {};
    if (row >= 0 && row < v) LoadUnit<kType, false>(table + row * row_bytes, unit, dim, values);
    for (int half = 0; half < 2; ++half) {
      const int64_t first = UnitHalf<kType>(unit, half);
      for (int i = 0; i < 4 && first + i < dim; ++i) {
        out[token * out_stride + first + i] = values[half * 4 + i];
      }
    }
  }
};

}  // namespace

void Embed(CudaStream s, const int32_t* ids, int64_t t, DType table_type, const void* table,
           int64_t table_stride, int64_t v, int64_t dim, int64_t vocab_begin, float* out,
           int64_t out_stride) {
  WithStoredType(table_type, [&]<DType kType>() {
    ForEach(s, t, CeilDiv(dim, kUnit),
            EmbedUnit<kType>{ids, static_cast<const uint8_t*>(table), RowBytes(kType, table_stride),
                             v, dim, vocab_begin, out, out_stride});
  });
}

}  // namespace toroid
