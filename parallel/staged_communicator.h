// The communicator of device memory that goes through the host's: each verb waits for its stream,
// brings its operands to host memory, runs on a host communicator and brings the result back. For
// ranks that share a GPU, which NCCL refuses; slow, and the sums are those of the host
// communicator.
#pragma once

#include <memory>

#include "core/backend.h"
#include "core/communicator.h"

namespace toroid {

// host: of the same ranks, used by nobody else. ops outlives the communicator.
std::unique_ptr<Communicator> NewStagedCommunicator(std::unique_ptr<Communicator> host,
                                                    Backend& ops);

}  // namespace toroid
