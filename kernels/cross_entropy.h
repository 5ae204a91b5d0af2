// Log-probabilities of labels over a vocabulary that is seen in tiles (blocks of columns) and held
// in shards (ranks). Each row keeps three numbers: (max, sum of e^(logit - max), label's logit),
// fresh (-inf, 0, -inf); they fold over tiles and merge over shards, so the logits of the whole
// vocabulary never exist at once:
//   log Z = max + ln sum,   log p = label's logit - log Z.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

// Folds logits [t, n] (stride in elements) of ids [vocab_begin, +n) into stat f64 [t, 3]. A label
// outside of the tile leaves the third number as it is.
template <typename T>
void VocabStatistics(ThreadPool& pool, const T* logits, int64_t stride, int64_t t, int64_t n,
                     int64_t vocab_begin, const int32_t* labels, double* stat);

// parts: f64 [n, t, 3] of n shards, merged in order; log_p, log_z: f64 [t].
void VocabMerge(ThreadPool& pool, const double* parts, int64_t n, int64_t t, double* log_p,
                double* log_z);

void VocabStatistics(CudaStream s, const float* logits, int64_t stride, int64_t t, int64_t n,
                     int64_t vocab_begin, const int32_t* labels, double* stat);
void VocabMerge(CudaStream s, const double* parts, int64_t n, int64_t t, double* log_p,
                double* log_z);

// Backward of both: with p_j = e^(logit_j - log Z), d log Z / d logit_j = p_j and
// d log p / d logit_j = (j is the label) - p_j, so
//   dlogits_j = d_log_p ((j is the label) - p_j) + d_log_z p_j
// for the ids [vocab_begin, +n) of one tile. log_z, d_log_p, d_log_z: f64 [t]. dlogits may be
// logits.
template <typename T>
void VocabBackward(ThreadPool& pool, const T* logits, int64_t stride, int64_t t, int64_t n,
                   int64_t vocab_begin, const int32_t* labels, const double* log_z,
                   const double* d_log_p, const double* d_log_z, T* dlogits,
                   int64_t dlogits_stride);

// The gradient of loss = sum_i weight_i (-log p_i + zeta (log Z_i)^2) by log p and log Z, zeros
// where labels[i] < 0: d_log_p = -weight, d_log_z = 2 zeta weight log Z. All f64 [t].
void LossBackward(ThreadPool& pool, const int32_t* labels, const double* weights, double zeta,
                  const double* log_z, int64_t t, double* d_log_p, double* d_log_z);

// On a CUDA device: dlogits are f32, or bf16 and then not logits.
void VocabBackward(CudaStream s, const float* logits, int64_t stride, int64_t t, int64_t n,
                   int64_t vocab_begin, const int32_t* labels, const double* log_z,
                   const double* d_log_p, const double* d_log_z, DType type, void* dlogits,
                   int64_t dlogits_stride);
void LossBackward(CudaStream s, const int32_t* labels, const double* weights, double zeta,
                  const double* log_z, int64_t t, double* d_log_p, double* d_log_z);

}  // namespace toroid
