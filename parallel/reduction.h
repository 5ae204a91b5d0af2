// Sums and maxima over ranks, element by element in rank order: one piece of code for every
// communicator, so that all give the same bits. And the sizes of the scratch that MPI needs for it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/communicator.h"

namespace toroid {

// out[i] = in[0][i] (+) in[1][i] (+) ..., for i < count, in this order. f32, f64, i32, i64 in their
// own type; bf16 in f32, rounded once. kMax: NaN wins. out may be one of in, else they are apart.
// Thread-safe.
void ReduceInRankOrder(const std::vector<const void*>& in, void* out, int64_t count, DType type,
                       ReduceOp op);

// Elements [begin, begin + count) that rank r of n reduces of a sum of `total` elements: equal
// blocks of a multiple of 64 elements, the last ones shorter or empty.
struct ReductionBlock {
  int64_t begin, count;
};
ReductionBlock BlockOf(int rank, int size, int64_t total);

// A sum of at most this many bytes is gathered whole by every rank: one exchange instead of two.
inline constexpr int64_t kSmallReduction = 16 << 10;

// MPI keeps two slots per peer: while one round of pieces is summed, the next arrives. Bytes of one
// slot for a reduction whose largest message to one peer is `message` bytes: a multiple of 4 KiB,
// at most `limit`, and all slots of a rank together at most 32 MiB.
int64_t ReductionSlotBytes(int size, int64_t message, int64_t limit);
inline constexpr int64_t kReductionSlotLimit = 512 << 10;
// The largest message to one peer of an all-reduce of `total` elements.
int64_t AllReduceMessageBytes(int size, int64_t total, DType type);
inline int64_t ReductionScratchBytes(int size, int64_t slot_bytes) {
  return 2 * (size - 1) * slot_bytes;
}

}  // namespace toroid
