// The communicator that only counts: the counters and buffer sizes of a rank of a world that does
// not exist, for `plan` (the same model code on the counting backend). Nothing moves, nothing
// waits.
#pragma once

#include <memory>

#include "core/communicator.h"
#include "parallel/reduction.h"

namespace toroid {

// Rank `rank` of a world of `size`: 0 <= rank < size. communicator_bytes() is what the MPI
// communicator of that rank (with that limit of a slot) would hold after the same calls.
std::unique_ptr<Communicator> NewCountingWorld(int rank, int size,
                                               int64_t slot_limit = kReductionSlotLimit);

// The same for a rank that computes on a CPU, or on a GPU: what NCCL takes there is not counted.
std::unique_ptr<Communicator> NewCountingRank(int rank, int size, bool on_gpu);

// The same for a rank of `world`, fresh, whose verbs will be called on streams like `s`: those of a
// device need no scratch but what the world holds from the beginning.
std::unique_ptr<Communicator> NewCountingTwin(const Communicator& world, Stream s);

}  // namespace toroid
