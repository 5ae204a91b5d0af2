// BroadcastChannel: rank 0's messages to ranks that sleep until there is one: programs.
//
// MPI can only be polled. An idle rank that polls without pause burns a core, one that sleeps
// between polls hears late, and its polling holds up rank 0 where cores are few. Processes of rank
// 0's host therefore share a piece of memory with it: a ring of slots, into which rank 0 copies
// each message once for all of them, and a count of the pieces sent, on which they sleep (futex).
// One system call of rank 0 wakes them all, and until then they cost nothing. Ranks of other hosts,
// and ranks that are threads of one process, are sent messages by their communicator, and poll for
// them with short sleeps.
//
// Rank 0 may be ahead of the others by as much as the slots hold, then it waits for the slowest.
// One rank's, not thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/communicator.h"

namespace toroid {

class BroadcastChannel {
 public:
  enum class Sharing {
    kProcesses,
    kAlways,  // threads too; for tests
    kNever
  };
  // Collective; the same `sharing` on all ranks. `world` outlives it.
  static std::unique_ptr<BroadcastChannel> Create(Communicator& world,
                                                  Sharing sharing = Sharing::kProcesses);
  // The others hear of it: Unavailable.
  ~BroadcastChannel();
  BroadcastChannel(const BroadcastChannel&) = delete;
  BroadcastChannel& operator=(const BroadcastChannel&) = delete;

  // Rank 0's bytes, on every rank; rank 0 returns as soon as they are on their way. Unavailable: a
  // rank has left; else as Communicator::Health.
  absl::StatusOr<std::string> Broadcast(std::string bytes);

  // Whether this rank shares memory with rank 0.
  bool shares() const { return page_ != nullptr; }

 private:
  struct Page;
  struct Slot;

  BroadcastChannel(Communicator& world, Page* page, int64_t page_bytes);
  static Page* Map(const std::string& name, int64_t bytes, bool make);
  Slot& SlotOf(uint32_t piece) const;
  absl::Status AwaitRoom() const;
  absl::Status SendToHost(const std::string& bytes);
  absl::StatusOr<std::string> ReceiveOnHost();
  absl::StatusOr<std::string> ByCommunicator(std::string bytes);

  const int rank_;
  Page* const page_;  // null: not shared
  const int64_t page_bytes_;
  std::vector<int> sharers_;              // on rank 0: the others with whom it shares memory
  std::unique_ptr<Communicator> others_;  // rank 0 and those that share none with it
  uint32_t pieces_ = 0;                   // sent, or received
};

}  // namespace toroid
