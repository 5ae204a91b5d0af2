// out[i] = table[ids[i] - vocab_begin], widened; zeros where the table [v, dim] does not hold the
// id (another rank's rows do: the sum over ranks is the embedding).
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// table_stride and out_stride in elements. table: any type that DecodeRow reads.
template <typename T>
void Embed(ThreadPool& pool, const int32_t* ids, int64_t t, DType table_type, const void* table,
           int64_t table_stride, int64_t v, int64_t dim, int64_t vocab_begin, T* out,
           int64_t out_stride);

// table: a type of IsStoredWeight.
void Embed(CudaStream s, const int32_t* ids, int64_t t, DType table_type, const void* table,
           int64_t table_stride, int64_t v, int64_t dim, int64_t vocab_begin, float* out,
           int64_t out_stride);

// Backward of out[i] = table[ids[i] - vocab_begin]: dtable[ids[i] - vocab_begin] += dout[i], in
// order of i on any number of threads. dout: [t, dim]; dtable: [v, dim], strides in elements.
template <typename T>
void EmbedBackward(ThreadPool& pool, const int32_t* ids, int64_t t, const T* dout,
                   int64_t dout_stride, int64_t v, int64_t dim, int64_t vocab_begin, T* dtable,
                   int64_t dtable_stride);

// workspace: EmbedBackwardWorkspace(t) bytes, 256-byte aligned, that no other work uses meanwhile.
int64_t EmbedBackwardWorkspace(int64_t t);
void EmbedBackward(CudaStream s, const int32_t* ids, int64_t t, const float* dout,
                   int64_t dout_stride, int64_t v, int64_t dim, int64_t vocab_begin, float* dtable,
                   int64_t dtable_stride, void* workspace, int64_t workspace_bytes);

}  // namespace toroid
