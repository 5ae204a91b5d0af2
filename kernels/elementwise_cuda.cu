#include <cmath>

#include "kernels/elementwise.h"
#include "kernels/row_sums.cuh"

namespace toroid {

namespace {

// Between types that float32 holds.
template <typename From, typename To>
struct ConvertElements {
  const From* x;
  int64_t x_stride;
  To* out;
  int64_t out_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float value[kWidth];
    LoadWide(x + row * x_stride + col, value);
    StoreWide(value, out + row * out_stride + col);
  }
};

template <typename From, typename To>
struct ConvertElement {
  const From* x;
  int64_t x_stride;
  To* out;
  int64_t out_stride;
  __device__ void operator()(int64_t row, int64_t col) const {
    out[row * out_stride + col] = Convert<To>(x[row * x_stride + col]);
  }
};

template <typename T>
struct FillElement {
  T* x;
  int64_t stride;
  T value;
  __device__ void operator()(int64_t row, int64_t col) const { x[row * stride + col] = value; }
};

struct AddElements {
  float* x;
  int64_t x_stride;
  const float* y;
  int64_t y_stride;
  template <int kWidth>
  __device__ void At(int64_t row, int64_t col) const {
    float a[kWidth], b[kWidth];
    LoadWide(x + row * x_stride + col, a);
    LoadWide(y + row * y_stride + col, b);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[i] += b[i];
    StoreWide(a, x + row * x_stride + col);
  }
};

template <typename E>
struct ScaleElement {
  E* x;
  int64_t stride;
  float factor;
  __device__ void operator()(int64_t row, int64_t col) const {
    E& value = x[row * stride + col];
    value = Convert<E>(Widen(value) * factor);
  }
};

// A thread per column of a part (blockIdx.y) of the rows.
template <typename E>
__global__ void SumRowsKernel(const E* x, int64_t stride, int64_t rows, int64_t rows_of_part,
                              int64_t cols, float* partials) {
  const int64_t col = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  const int64_t begin = blockIdx.y * rows_of_part, end = min(begin + rows_of_part, rows);
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += Widen(x[row * stride + col]);
  partials[blockIdx.y * cols + col] = sum;
}

// The two plain types of a conversion are known from here on.
template <typename From>
void ConvertFrom(CudaStream s, const void* x, int64_t x_stride, DType out_type, void* out,
                 int64_t out_stride, int64_t rows, int64_t cols) {
  const auto convert = [&](auto* to) {
    using To = std::remove_reference_t<decltype(*to)>;
    const From* from = static_cast<const From*>(x);
    if constexpr (std::is_same_v<From, double> || std::is_same_v<To, double>) {
      ForEach(s, rows, cols, ConvertElement<From, To>{from, x_stride, to, out_stride});
    } else {
      const bool eights = TakesEights(from, x_stride, cols) && TakesEights(to, out_stride, cols);
      ForEachWide(s, eights, rows, cols, ConvertElements<From, To>{from, x_stride, to, out_stride});
    }
  };
  if (out_type == DType::kF32) convert(static_cast<float*>(out));
  if (out_type == DType::kF64) convert(static_cast<double*>(out));
  if (out_type == DType::kBF16) convert(static_cast<__nv_bfloat16*>(out));
}

template <typename T>
void FillAs(CudaStream s, void* x, int64_t stride, int64_t rows, int64_t cols, T value) {
  ForEach(s, rows, cols, FillElement<T>{static_cast<T*>(x), stride, value});
}

}  // namespace

void CopyRows(CudaStream s, DType x_type, const void* x, int64_t x_stride, DType out_type,
              void* out, int64_t out_stride, int64_t rows, int64_t cols) {
  if (rows == 0 || cols == 0 || (x == out && x_type == out_type)) return;
  if (x_type == out_type) {
    const size_t bytes = size_t(RowBytes(x_type, cols));
    if (rows == 1 || (x_stride == cols && out_stride == cols)) {
      cudaMemcpyAsync(out, x, bytes * size_t(rows), cudaMemcpyDeviceToDevice, s);
    } else {
      cudaMemcpy2DAsync(out, size_t(RowBytes(x_type, out_stride)), x,
                        size_t(RowBytes(x_type, x_stride)), bytes, size_t(rows),
                        cudaMemcpyDeviceToDevice, s);
    }
    return;
  }
  if (x_type == DType::kF32) {
    ConvertFrom<float>(s, x, x_stride, out_type, out, out_stride, rows, cols);
  } else if (x_type == DType::kF64) {
    ConvertFrom<double>(s, x, x_stride, out_type, out, out_stride, rows, cols);
  } else if (x_type == DType::kBF16) {
    ConvertFrom<__nv_bfloat16>(s, x, x_stride, out_type, out, out_stride, rows, cols);
  }
}

void FillRows(CudaStream s, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
              double value) {
  const bool zeros = value == 0 && !std::signbit(value);  // all bits
  if (zeros && (rows == 1 || stride == cols) && rows * cols > 0) {
    cudaMemsetAsync(x, 0, size_t(RowBytes(type, cols) * rows), s);
    return;
  }
  switch (type) {
    case DType::kF32:
      return FillAs(s, x, stride, rows, cols, float(value));
    case DType::kF64:
      return FillAs(s, x, stride, rows, cols, value);
    case DType::kBF16:
      return FillAs(s, x, stride, rows, cols, ToBf16(float(value)));
    case DType::kI32:
      return FillAs(s, x, stride, rows, cols, int32_t(value));
    case DType::kI64:
      return FillAs(s, x, stride, rows, cols, int64_t(value));
    default:
      return;
  }
}

void AddRows(CudaStream s, float* x, int64_t x_stride, const float* y, int64_t y_stride,
             int64_t rows, int64_t cols) {
  const bool eights = TakesEights(x, x_stride, cols) && TakesEights(y, y_stride, cols);
  ForEachWide(s, eights, rows, cols, AddElements{x, x_stride, y, y_stride});
}

void ScaleRows(CudaStream s, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
               double factor) {
  WithActivation(type, [&]<typename E>(E) {
    ForEach(s, rows, cols, ScaleElement<E>{static_cast<E*>(x), stride, float(factor)});
  });
}

void SumRows(CudaStream s, DType type, const void* dx, int64_t dx_stride, int64_t rows,
             int64_t cols, float* dy, void* workspace, int64_t workspace_bytes) {
  if (rows == 0 || cols == 0) return;
  const SumWorkspace sums{static_cast<float*>(workspace), workspace_bytes};
  const Parts parts = CutRows(rows, cols, 512, sums);
  constexpr int kThreads = 128;
  const dim3 grid(unsigned(CeilDiv(cols, kThreads)), unsigned(parts.count));
  WithActivation(type, [&]<typename E>(E) {
    SumRowsKernel<<<grid, kThreads, 0, s>>>(static_cast<const E*>(dx), dx_stride, rows, parts.rows,
                                            cols, sums.data);
  });
  AddPartials(s, sums.data, parts.count, cols, cols, dy);
}

}  // namespace toroid
