// The communicator over NCCL: device memory of ranks with a GPU each.
//
// Every verb is a kernel on its stream that begins after the rank's NCCL verb before it has ended,
// whatever communicator and stream that was on: two of them at a time could wait for each other
// for ever, and so there is one order, that of the host's calls. With two ranks sums have the bits
// of rank order; with more NCCL adds in an order of its own, the same on all ranks and in all runs
// of one machine. Maxima are taken in rank order by our own kernel, since NCCL's lose a NaN.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/communicator.h"

namespace toroid {

// Collective over `host`, which takes host memory and brings NCCL's id to all ranks; it is not used
// afterwards. `device`: of those that this process sees, another one on each rank.
// FailedPrecondition in a build without NCCL; Unavailable: NCCL's words.
absl::StatusOr<std::unique_ptr<Communicator>> NewNcclCommunicator(Communicator& host, int device);

// Of the library that is loaded, "2.28.9"; empty in a build without NCCL.
std::string NcclVersion();

}  // namespace toroid
