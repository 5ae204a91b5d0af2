#include "kernels/device.cuh"
#include "kernels/dropout.h"
#include "kernels/philox.h"

namespace toroid {

namespace {

template <typename E>
struct DropElement {
  uint64_t dropped;  // a word below it drops its element
  float scale;
  uint64_t seed, place;  // of layer and site
  int64_t width, col_begin;
  const int64_t* step;
  const int64_t* row_ids;
  const E* x;
  int64_t x_stride;
  E* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    const uint64_t element = uint64_t(row_ids[row]) * uint64_t(width) + uint64_t(col_begin + col);
    const auto words = Philox(seed, element / 4, uint64_t(*step) << 24 | place);
    const float value = Widen(x[row * x_stride + col]);
    out[row * out_stride + col] = Convert<E>(words[element % 4] < dropped ? 0.0f : value * scale);
  }
};

}  // namespace

void Dropout(CudaStream s, const DropoutSpec& spec, const int64_t* step, const int64_t* row_ids,
             int64_t col_begin, DType type, const void* x, int64_t x_stride, void* out,
             int64_t out_stride, int64_t rows, int64_t cols) {
  const uint64_t place = uint64_t(spec.layer) << 8 | uint64_t(spec.site);
  WithActivation(type, [&]<typename E>(E) {
    ForEach(s, rows, cols,
            DropElement<E>{uint64_t(spec.rate * 0x1p32), float(1 / (1 - spec.rate)), spec.seed,
                           place, spec.width, col_begin, step, row_ids, static_cast<const E*>(x),
                           x_stride, static_cast<E*>(out), out_stride});
  });
}

}  // namespace toroid
