// MpiSession: MPI in this process, from MPI_Init_thread to MPI_Finalize. Included only by the mpi_*
// files: nothing else of toroid knows MPI.
//
// MPI may be started once per process. The session ends when the last communicator or channel that
// holds it is destroyed; after an error it ends without MPI_Finalize, which would wait for ranks
// that are gone, and mpirun then ends the other ranks.
#pragma once

#include <mpi.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace toroid {

class MpiSession {
 public:
  // Collective. FailedPrecondition when this MPI does not grant MPI_THREAD_MULTIPLE, when the
  // process is alone where its launcher promised more ranks, or when MPI was used before.
  static absl::StatusOr<std::shared_ptr<MpiSession>> Start(int* argc, char*** argv);
  // The running session, or null.
  static std::shared_ptr<MpiSession> Current();
  ~MpiSession();

  // All ranks, those of one host side by side: hosts in the order of their lowest rank of
  // MPI_COMM_WORLD, which is MPI's own order unless it was told to deal ranks round robin.
  MPI_Comm world() const { return world_; }
  void MarkBroken() { broken_.store(true); }
  bool broken() const { return broken_.load(); }

 private:
  MpiSession() = default;
  absl::Status OrderByHost();

  MPI_Comm world_ = MPI_COMM_NULL;
  std::atomic<bool> broken_{false};
};

// OK for MPI_SUCCESS; else Unavailable with MPI's words after `what`.
absl::Status MpiError(int code, const std::string& what);

}  // namespace toroid
