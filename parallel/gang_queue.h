// GangQueue: the programs of several clients on one rank, in the one order of the world, prepared
// while earlier ones run.
//
// A gang is a program that all ranks run together. Two clients hand gangs to the ranks at the same
// time, and each rank hears of them in an order of its own; ran they so, one rank would wait in a
// collective of the first client and another in one of the second, for ever. One place (of a world
// under a controller: the controller) therefore stamps every gang with its place in one order, 1,
// 2, .., and every rank runs them so (Pathways, section 4.4: one scheduler per island).
//
// What a gang needs before it can run (`prepare`: ids of a prompt, paths) may be made at any time,
// since it needs no rank: n steps that each take P to prepare and C to run, all at hand at once,
// take P + n C with enough preparers, not n (P + C) (Pathways, section 4.5: parallel asynchronous
// dispatch). A gang that needs what an earlier one makes says so, and is prepared at its turn.
//
// Thread-safe. One thread at a time calls Next.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace toroid {

class GangQueue {
 public:
  enum class Order {
    kStamped,
    kArrival  // of this rank: with more than one client the world hangs sooner or later
  };
  struct Gang {
    uint64_t number = 0;            // its place in the order
    std::function<void()> prepare;  // called once, before Next returns the gang
    bool ahead = true;              // prepare needs nothing that earlier gangs make
    std::function<void()> run;      // the caller of Next calls it
  };

  // preparers: threads, so many gangs are prepared at once; with none each is prepared by Next.
  // They are started as they are needed.
  explicit GangQueue(int preparers, Order order = Order::kStamped);
  // Waits for preparations that have begun; what was not run is dropped.
  ~GangQueue();
  GangQueue(const GangQueue&) = delete;
  GangQueue& operator=(const GangQueue&) = delete;

  // Numbers come without gaps, each once, in any order.
  void Push(Gang gang);
  // The next gang, once it is here and prepared. nullopt: closed.
  std::optional<Gang> Next();
  // Whether Next would return at once.
  bool Ready();
  // Next returns nullopt from now on, whatever waits.
  void Close();

 private:
  enum class State { kWaits, kPreparing, kReady };
  struct Entry {
    Gang gang;
    State state = State::kWaits;
  };
  using Entries = std::list<Entry>;

  bool Here() const;  // the next gang
  bool MayBePrepared(const Entry& entry) const;
  void PrepareAhead();
  void Prepare(std::unique_lock<std::mutex>& lock, Entry& entry);

  const size_t most_preparers_;
  const Order order_;
  std::mutex mutex_;
  std::condition_variable arrived_;  // for preparers: a gang that may be prepared
  std::condition_variable ready_;    // for Next: arrived, prepared or closed
  Entries entries_;                  // in the order in which they run
  uint64_t next_ = 1;                // number that Next returns, if order_ is kStamped
  bool awaited_ = false;             // Next waits on ready_
  bool closed_ = false, ending_ = false;
  size_t idle_ = 0;  // preparers that wait
  std::vector<std::thread> preparers_;
};

}  // namespace toroid
