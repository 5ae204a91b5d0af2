// OrderedCommunicator: what the thread and the MPI communicator share: the host order of the verbs
// of one communicator, whatever their streams, and the first error.
//
// Each verb takes a number when it is called; its step waits on its stream until all earlier verbs
// of the communicator are done. Two streams may thus carry verbs of one communicator, and messages
// between two ranks match in the order of the calls. Verbs are called from one thread; their steps
// may run on any. The communicator outlives its steps.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>

#include "absl/status/status.h"
#include "core/communicator.h"

namespace toroid {

class OrderedCommunicator : public Communicator {
 public:
  absl::Status Health() const final;

 protected:
  OrderedCommunicator(int rank, int size) : Communicator(rank, size) {}

  // Puts `poll` on s: called until it returns true, its first call after all earlier verbs here are
  // done. Skipped when there is an error by then.
  void Enqueue(Stream s, std::function<bool()> poll);
  // Keeps the first error. Returns true, so that a step can end with `return Fail(...)`.
  bool Fail(absl::Status error);
  bool failed() const { return failed_.load(std::memory_order_acquire); }

 private:
  int64_t called_ = 0;            // by the calling thread only
  std::atomic<int64_t> done_{0};  // verbs finished or skipped
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  absl::Status error_;  // guarded by mutex_
};

}  // namespace toroid
