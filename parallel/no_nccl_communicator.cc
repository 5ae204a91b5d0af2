// In the place of nccl_communicator.cc in a build without NCCL.
#include "parallel/nccl_communicator.h"

namespace toroid {

absl::StatusOr<std::unique_ptr<Communicator>> NewNcclCommunicator(Communicator&, int) {
  return absl::FailedPreconditionError(
      "this toroid was built without NCCL: use one rank, --device cpu, or build it with "
      "-DTOROID_CUDA=ON where nccl.h is");
}

std::string NcclVersion() { return ""; }

}  // namespace toroid
