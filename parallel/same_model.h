// Ranks read the model each for itself, maybe copies of it on different hosts, and run their own
// copy of this executable: a difference would show only as wrong numbers.
#pragma once

#include "absl/status/status.h"
#include "core/communicator.h"
#include "core/io/model_source.h"

namespace toroid {

// FailedPrecondition, on all ranks alike, naming the first rank whose model or build of toroid is
// not rank 0's. whole: all bytes of the model are compared, not samples. Collective.
absl::Status CheckSameModel(Communicator& world, const ModelSource& source, bool whole);

}  // namespace toroid
