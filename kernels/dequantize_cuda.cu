#include <type_traits>

#include "kernels/stored_weight.cuh"

namespace toroid {

namespace {

// A thread per unit. Columns from k to the end of the last unit become zero.
// kVector: as LoadUnit has it, and rows of out start at multiples of 16 bytes.
template <DType kType, bool kVector, typename To>
struct DecodeUnit {
  const uint8_t* rows;
  int64_t row_bytes, k;
  To* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t unit) const {
    float values[kUnit];
    LoadUnit<kType, kVector>(rows + row * row_bytes, unit, k, values);
    if constexpr (kVector && !IsNibbles(kType)) {
      StoreWide(values, out + row * out_stride + unit * kUnit);
    } else {
      for (int half = 0; half < 2; ++half) {
        To* to = out + row * out_stride + UnitHalf<kType>(unit, half);
        alignas(4 * sizeof(To)) To four[4];
        for (int i = 0; i < 4; ++i) four[i] = Convert<To>(values[half * 4 + i]);
        if constexpr (kVector) {
          using Four = std::conditional_t<sizeof(To) == 2, uint2, uint4>;
          *reinterpret_cast<Four*>(to) = *reinterpret_cast<const Four*>(four);
        } else {
          for (int i = 0; i < 4; ++i) to[i] = four[i];
        }
      }
    }
  }
};

template <typename To>
void Decode(CudaStream s, DType type, const void* rows, int64_t row_bytes, int64_t n, int64_t k,
            To* out, int64_t out_stride) {
  WithStoredType(type, [&]<DType kType>() {
    const uint8_t* from = static_cast<const uint8_t*>(rows);
    const bool vector =
        TakesEights(from, IsQuantised(kType) ? 0 : row_bytes, k) && TakesEights(out, out_stride, k);
    if (vector) {
      ForEach(s, n, k / kUnit, DecodeUnit<kType, true, To>{from, row_bytes, k, out, out_stride});
    } else {
      ForEach(s, n, CeilDiv(k, kUnit),
              DecodeUnit<kType, false, To>{from, row_bytes, k, out, out_stride});
    }
  });
}

}  // namespace

void DecodeRows(CudaStream s, DType type, const void* rows, int64_t row_bytes, int64_t n, int64_t k,
                DType out_type, void* out, int64_t out_stride) {
  if (out_type == DType::kBF16) {
    Decode(s, type, rows, row_bytes, n, k, static_cast<__nv_bfloat16*>(out), out_stride);
  } else {
    Decode(s, type, rows, row_bytes, n, k, static_cast<float*>(out), out_stride);
  }
}

}  // namespace toroid
