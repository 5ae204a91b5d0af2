// MpiExchange: a set of messages between this rank and others that start together and are waited
// for together. Included only by mpi_* files.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace toroid {

// Messages are cut at `cut` bytes; both ends cut alike. Zero bytes make no call. Used by one thread
// at a time; buffers stay until Poll has said done.
class MpiExchange {
 public:
  MpiExchange(MPI_Comm comm, int64_t cut) : comm_(comm), cut_(cut) {}

  void Send(const void* data, int64_t bytes, int to);
  void Receive(void* data, int64_t bytes, int from);
  void Broadcast(void* data, int64_t bytes, int root);
  void Barrier();

  // One attempt: true when all is done or the first error is known (then `error` says it); the
  // exchange is then empty and may be used anew. Messages of another length than expected are
  // errors.
  bool Poll(absl::Status& error);

 private:
  struct Awaited {
    int peer;       // for messages
    int64_t bytes;  // expected; negative where nothing is received from a peer
  };
  void Started(int code, const char* what, int peer, Awaited awaited);
  absl::Status Problem(int code);

  const MPI_Comm comm_;
  const int64_t cut_;
  absl::Status first_error_;
  std::vector<MPI_Request> requests_;
  std::vector<Awaited> awaited_;  // by request
  std::vector<MPI_Status> statuses_;
};

}  // namespace toroid
