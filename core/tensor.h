// Tensor: a typed view of bytes on a backend. Partial: a tensor that still owes a sum.
//
// Names end in their dims (README legend): B sequences, T tokens (packed), S cached tokens, D
// model, F feed-forward, H query heads, G KV heads, K head dim, V vocabulary. A capital is the
// whole dimension, a small letter this rank's share: t of T over data and ring, u of T over data,
// ring and tensor, h, g, f, v over tensor. Contract over a small letter and you owe a reduction: a
// Partial.
//
// A tensor owns nothing: arenas and weights own the bytes. Copying one copies the view.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "core/check.h"
#include "kernels/dtype.h"

namespace toroid {

struct Tensor {
  DType dtype = DType::kF32;
  int dim_count = 0;
  std::array<int64_t, 4> dims = {};
  // Elements between consecutive rows (index of dims[0]); all inner dims are contiguous. A column
  // range of a matrix is thus a view. Quantised tensors are contiguous: stride == cols().
  int64_t stride = 0;
  void* data = nullptr;

  Tensor() = default;
  // A contiguous tensor at `data`.
  Tensor(DType type, std::initializer_list<int64_t> shape, void* bytes) : dtype(type), data(bytes) {
    TOROID_CHECK_LE(shape.size(), 4u);
    for (int64_t d : shape) dims[dim_count++] = d;
    stride = cols();
  }

  // Zero for Tensor(): a tensor that was never given dims is empty ("no bias", "nothing to send").
  int64_t rows() const { return dims[0]; }
  int64_t cols() const {
    int64_t n = 1;
    for (int i = 1; i < dim_count; ++i) n *= dims[i];
    return n;
  }
  int64_t size() const { return rows() * cols(); }
  int64_t row_bytes() const { return RowBytes(dtype, cols()); }
  // Bytes of a contiguous tensor of this shape.
  int64_t bytes() const { return rows() * row_bytes(); }
  bool contiguous() const { return stride == cols() || rows() <= 1; }
  bool empty() const { return size() == 0; }
  // Not Tensor(): it has a place, though perhaps of no elements.
  bool given() const { return dim_count > 0; }

  // Rows [begin, begin + count).
  Tensor Rows(int64_t begin, int64_t count) const {
    TOROID_CHECK(begin >= 0 && count >= 0 && begin + count <= rows());
    Tensor view = *this;
    view.dims[0] = count;
    view.data = static_cast<char*>(data) + begin * RowBytes(dtype, stride);
    return view;
  }
  // Columns [begin, begin + count) of a matrix.
  Tensor Cols(int64_t begin, int64_t count) const {
    TOROID_CHECK(dim_count == 2 && begin >= 0 && count >= 0 && begin + count <= dims[1]);
    Tensor view = *this;
    view.dims[1] = count;
    view.data = static_cast<char*>(data) + RowBytes(dtype, begin);
    return view;
  }
  // The same bytes in another shape of equal size. REQUIRES: contiguous, or only the inner dims of
  // the rows regrouped.
  Tensor Reshape(std::initializer_list<int64_t> shape) const {
    Tensor view(dtype, shape, data);
    TOROID_CHECK_EQ(view.size(), size());
    if (view.rows() == rows()) {
      view.stride = stride;
    } else {
      TOROID_CHECK(contiguous());
    }
    return view;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

class Communicator;

// A tensor whose true value is the sum of what all ranks of an axis hold: the result of contracting
// over a small letter. Only Communicator::AllReduce and ReduceScatter turn it into a Tensor, so a
// forgotten or doubled sum does not compile.
class Partial {
 public:
  explicit Partial(Tensor owed) : owed_(owed) {}
  Partial Rows(int64_t begin, int64_t count) const { return Partial(owed_.Rows(begin, count)); }
  int64_t rows() const { return owed_.rows(); }

 private:
  friend class Communicator;
  Tensor owed_;
};

}  // namespace toroid
