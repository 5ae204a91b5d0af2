#include <algorithm>
#include <cstring>

#include "kernels/elementwise.h"

namespace toroid {

namespace {

// Rows that make a chunk of about 64 KiB.
int64_t Grain(int64_t row_bytes) {
  return std::clamp<int64_t>(65536 / std::max<int64_t>(row_bytes, 1), 1, 4096);
}

float Read(const uint16_t* x, int64_t i) { return FromBf16(x[i]); }
template <typename T>
T Read(const T* x, int64_t i) {
  return x[i];
}
template <typename T>
void Write(uint16_t* x, int64_t i, T value) {
  x[i] = ToBf16(float(value));
}
template <typename Out, typename T>
void Write(Out* x, int64_t i, T value) {
  x[i] = Out(value);
}

template <typename In, typename Out>
void Convert(const void* x, void* out, int64_t cols) {
  const In* from = static_cast<const In*>(x);
  Out* to = static_cast<Out*>(out);
  for (int64_t i = 0; i < cols; ++i) Write(to, i, Read(from, i));
}

template <typename In>
void ConvertFrom(const void* x, DType out_type, void* out, int64_t cols) {
  if (out_type == DType::kF32) {
    Convert<In, float>(x, out, cols);
  } else if (out_type == DType::kF64) {
    Convert<In, double>(x, out, cols);
  } else {
    Convert<In, uint16_t>(x, out, cols);
  }
}

template <typename T>
void FillRow(void* x, int64_t cols, T value) {
  std::fill_n(static_cast<T*>(x), cols, value);
}

}  // namespace

void ConvertRow(DType x_type, const void* x, DType out_type, void* out, int64_t cols) {
  if (x_type == out_type) {
    std::memmove(out, x, RowBytes(x_type, cols));
  } else if (x_type == DType::kF32) {
    ConvertFrom<float>(x, out_type, out, cols);
  } else if (x_type == DType::kF64) {
    ConvertFrom<double>(x, out_type, out, cols);
  } else {
    ConvertFrom<uint16_t>(x, out_type, out, cols);
  }
}

void CopyRows(ThreadPool& pool, DType x_type, const void* x, int64_t x_stride, DType out_type,
              void* out, int64_t out_stride, int64_t rows, int64_t cols) {
  if (cols == 0) return;
  const char* from = static_cast<const char*>(x);
  char* to = static_cast<char*>(out);
  const int64_t from_bytes = RowBytes(x_type, x_stride), to_bytes = RowBytes(out_type, out_stride);
  const bool dense = x_stride == cols && out_stride == cols;
  pool.ParallelFor(rows, Grain(RowBytes(x_type, cols)), [&](int64_t begin, int64_t end, int) {
    if (dense) {  // rows may be of one element
      ConvertRow(x_type, from + begin * from_bytes, out_type, to + begin * to_bytes,
                 (end - begin) * cols);
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      ConvertRow(x_type, from + i * from_bytes, out_type, to + i * to_bytes, cols);
    }
  });
}

void FillRows(ThreadPool& pool, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
              double value) {
  char* to = static_cast<char*>(x);
  const int64_t row_bytes = RowBytes(type, stride);
  pool.ParallelFor(rows, Grain(RowBytes(type, cols)), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      void* row = to + i * row_bytes;
      if (type == DType::kF32) {
        FillRow(row, cols, float(value));
      } else if (type == DType::kF64) {
        FillRow(row, cols, value);
      } else if (type == DType::kBF16) {
        FillRow(row, cols, ToBf16(float(value)));
      } else if (type == DType::kI32) {
        FillRow(row, cols, int32_t(value));
      } else {
        FillRow(row, cols, int64_t(value));
      }
    }
  });
}

template <typename T>
void AddRows(ThreadPool& pool, T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
             int64_t cols) {
  pool.ParallelFor(rows, Grain(cols * static_cast<int64_t>(sizeof(T))),
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t i = begin; i < end; ++i) {
                       T* to = x + i * x_stride;
                       const T* from = y + i * y_stride;
                       for (int64_t j = 0; j < cols; ++j) to[j] += from[j];
                     }
                   });
}

template <typename T>
void SumRows(ThreadPool& pool, const T* dx, int64_t dx_stride, int64_t rows, int64_t cols, T* dy) {
  constexpr int64_t kCols = 64;
  pool.ParallelFor(cols, kCols, [&](int64_t begin, int64_t end, int) {
    double sum[kCols] = {};
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = dx + i * dx_stride + begin;
      for (int64_t j = 0; j < end - begin; ++j) sum[j] += double(from[j]);
    }
    for (int64_t j = begin; j < end; ++j) dy[j] += T(sum[j - begin]);
  });
}

template <typename T>
void ScaleRows(ThreadPool& pool, T* x, int64_t x_stride, int64_t rows, int64_t cols,
               double factor) {
  pool.ParallelFor(rows, Grain(cols * static_cast<int64_t>(sizeof(T))),
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t i = begin; i < end; ++i) {
                       T* row = x + i * x_stride;
                       for (int64_t j = 0; j < cols; ++j) row[j] *= T(factor);
                     }
                   });
}

template void SumRows(ThreadPool&, const float*, int64_t, int64_t, int64_t, float*);
template void SumRows(ThreadPool&, const double*, int64_t, int64_t, int64_t, double*);
template void ScaleRows(ThreadPool&, float*, int64_t, int64_t, int64_t, double);
template void ScaleRows(ThreadPool&, double*, int64_t, int64_t, int64_t, double);
template void AddRows(ThreadPool&, float*, int64_t, const float*, int64_t, int64_t, int64_t);
template void AddRows(ThreadPool&, double*, int64_t, const double*, int64_t, int64_t, int64_t);

}  // namespace toroid
