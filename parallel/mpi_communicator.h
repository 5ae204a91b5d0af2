// The communicator over MPI: ranks are the processes of one mpirun or srun.
//
// Verbs start non-blocking MPI calls from their stream's steps and test them there, so messages
// overlap compute and move while somebody drives the stream. Sums arrive piece by piece in scratch
// of bounded size and are added in rank order: the same bits as the thread communicator's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/communicator.h"
#include "parallel/reduction.h"

namespace toroid {

// Tests make them small; all ranks use the same.
struct MpiLimits {
  int64_t message_bytes = int64_t{1} << 30;  // longer messages are cut
  int64_t slot_bytes = kReductionSlotLimit;  // scratch of a reduction per peer, twice
};

// The world of all ranks; ranks of one host are side by side. Collective: starts MPI, which one
// process can do once; MPI ends with the last communicator. FailedPrecondition: see MpiSession.
absl::StatusOr<std::unique_ptr<Communicator>> NewMpiWorld(int* argc, char*** argv,
                                                          const MpiLimits& limits = {});

// The world where this process was started: MPI's where a launcher started it (mpirun, srun), else
// a SelfCommunicator, without starting MPI.
absl::StatusOr<std::unique_ptr<Communicator>> NewWorld(int* argc, char*** argv);

// The MPI library that is loaded, in its own words, without starting it: "Open MPI v4.1.4, ..".
std::string MpiLibraryVersion();

}  // namespace toroid
