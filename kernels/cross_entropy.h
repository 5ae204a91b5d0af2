// Log-probabilities of labels over a vocabulary that is seen in tiles (blocks of columns) and held
// in shards (ranks). Each row keeps three numbers: (max, sum of e^(logit - max), label's logit),
// fresh (-inf, 0, -inf); they fold over tiles and merge over shards, so the logits of the whole
// vocabulary never exist at once:
//   log Z = max + ln sum,   log p = label's logit - log Z.
#pragma once

#include <cstdint>

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

}  // namespace toroid
