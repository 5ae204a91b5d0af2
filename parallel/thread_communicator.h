// The communicator among threads of one process: each rank is a thread. For tests of everything
// that is parallel, under the thread sanitizer too; no MPI, no sockets.
//
// Verbs post pointers and read the peers' memory directly; nothing is copied twice and there is no
// scratch. Thread-safety: each communicator belongs to one rank's thread (its steps may run on
// any).
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/communicator.h"

namespace toroid {

// Looks at a world from outside its ranks, and ends it. Thread-safe.
class ThreadWorldMonitor {
 public:
  explicit ThreadWorldMonitor(int size) : verbs_(size) {}

  // The verb that `rank` is in, on any communicator of the world: "AllReduce"; "" in none.
  std::string VerbOf(int rank) const;
  // Each verb of the world, and of all communicators split from it, fails with `reason` from now
  // on, those that wait included: how a deadline frees ranks that hang.
  void Abandon(const std::string& reason);

  // For the communicators: what follows.
  bool abandoned() const { return abandoned_.load(std::memory_order_acquire); }
  std::string reason() const;
  void Enter(int rank, const char* verb) { verbs_[rank].store(verb, std::memory_order_relaxed); }

 private:
  std::vector<std::atomic<const char*>> verbs_;  // by world rank; string literals or null
  std::atomic<bool> abandoned_{false};
  mutable std::mutex mutex_;
  std::string reason_;  // guarded by mutex_
};

// The communicators of ranks 0 .. size - 1; hand each to a thread of its own.
//
// A rank that destroys its communicator has left: verbs that still wait for it fail with
// Unavailable at the other ranks instead of waiting for ever.
std::vector<std::unique_ptr<Communicator>> NewThreadWorld(
    int size, std::shared_ptr<ThreadWorldMonitor>* monitor = nullptr);

}  // namespace toroid
