// Ops that touch every element once: copy with conversion, fill, add, scale. Strides in elements.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// out = x for rows x cols elements. Equal types of any kind (of quantised ones whole rows, strides
// = cols), or any two of f32, f64, bf16; storing rounds to nearest.
void CopyRows(ThreadPool& pool, DType x_type, const void* x, int64_t x_stride, DType out_type,
              void* out, int64_t out_stride, int64_t rows, int64_t cols);

// One row of CopyRows.
void ConvertRow(DType x_type, const void* x, DType out_type, void* out, int64_t cols);

// x = value. type: f32, f64, bf16, i32, i64.
void FillRows(ThreadPool& pool, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
              double value);

// x += y by rows; y_stride 0 adds one row to every row.
template <typename T>
void AddRows(ThreadPool& pool, T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
             int64_t cols);

// As the above, on a CUDA device.
void CopyRows(CudaStream s, DType x_type, const void* x, int64_t x_stride, DType out_type,
              void* out, int64_t out_stride, int64_t rows, int64_t cols);
void FillRows(CudaStream s, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
              double value);
void AddRows(CudaStream s, float* x, int64_t x_stride, const float* y, int64_t y_stride,
             int64_t rows, int64_t cols);

// Backward of x += y with y one row: dy [cols] += sum over rows of dx, added in double in order of
// the rows. (Where y has rows of its own, dy is dx.)
template <typename T>
void SumRows(ThreadPool& pool, const T* dx, int64_t dx_stride, int64_t rows, int64_t cols, T* dy);

// x *= factor; its own backward.
template <typename T>
void ScaleRows(ThreadPool& pool, T* x, int64_t x_stride, int64_t rows, int64_t cols, double factor);

// On a CUDA device: x and dx are f32 or bf16.
void ScaleRows(CudaStream s, DType type, void* x, int64_t stride, int64_t rows, int64_t cols,
               double factor);
// workspace: any size above 4 cols bytes, that no other work uses meanwhile.
void SumRows(CudaStream s, DType type, const void* dx, int64_t dx_stride, int64_t rows,
             int64_t cols, float* dy, void* workspace, int64_t workspace_bytes);

}  // namespace toroid
