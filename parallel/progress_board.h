// ProgressBoard: where a rank is, for whoever watches it: the stall watch, the progress that rank 0
// reports. Cheap enough to write at every op.
//
// All members are relaxed atomics: any thread writes and reads at any time; a reader may see the op
// of one moment beside the layer of the next, which is good enough for a message. Only `sequence`
// and `ticks` decide whether a rank moves.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

namespace toroid {

// What a board says. Trivially copyable: it travels between ranks as bytes.
struct BoardReading {
  char op[24] = "start";
  int64_t layer = -1, round = -1;  // negative: none
  int64_t sequence = 0;            // places passed; comparable between ranks, which pass the same
  int64_t ticks = 0;               // life signs inside a place; not comparable
  bool busy = false;               // false: waits for something to do, and cannot stall
};

class ProgressBoard {
 public:
  // The rank enters op `op` of a layer and round and is busy. Every rank of a world calls this at
  // the same points of the program. op: a string literal, up to 23 characters are kept.
  void At(const char* op, int64_t layer = -1, int64_t round = -1) {
    op_.store(op, std::memory_order_relaxed);
    layer_.store(layer, std::memory_order_relaxed);
    round_.store(round, std::memory_order_relaxed);
    busy_.store(true, std::memory_order_relaxed);
    const int64_t passed = sequence_.fetch_add(1, std::memory_order_relaxed);
    Passed& place = places_[size_t(passed) % kPlaces];
    place.op.store(op, std::memory_order_relaxed);
    place.layer.store(layer, std::memory_order_relaxed);
    place.round.store(round, std::memory_order_relaxed);
    place.nanoseconds.store(Clock(), std::memory_order_relaxed);
  }
  // A life sign from inside a long op, from any of its threads: a block of attention or of a
  // product is done. An op that may take longer than --stall-timeout must give them.
  void Tick() { ticks_.fetch_add(1, std::memory_order_relaxed); }
  // What Tick raises, for a backend.
  std::atomic<int64_t>* ticks() { return &ticks_; }
  // The rank has nothing to do until it is given a program. Not progress: places passed stay equal
  // on all ranks.
  void Idle() { busy_.store(false, std::memory_order_relaxed); }

  BoardReading Read() const {
    BoardReading now;
    std::memset(now.op, 0, sizeof now.op);
    std::strncpy(now.op, op_.load(std::memory_order_relaxed), sizeof now.op - 1);
    now.layer = layer_.load(std::memory_order_relaxed);
    now.round = round_.load(std::memory_order_relaxed);
    now.sequence = sequence_.load(std::memory_order_relaxed);
    now.ticks = ticks_.load(std::memory_order_relaxed);
    now.busy = busy_.load(std::memory_order_relaxed);
    return now;
  }

  // The places that were passed last, the newest first, into room for kPlaces; how many there are.
  // Takes no lock and no memory: a signal handler may ask.
  struct Place {
    const char* op = "";
    int64_t layer = -1, round = -1, sequence = 0, nanoseconds = 0;  // by Clock
  };
  static constexpr int64_t kPlaces = 64;
  int64_t LastPlaces(Place* places) const {
    const int64_t passed = sequence_.load(std::memory_order_relaxed);
    const int64_t count = std::min(passed, kPlaces);
    for (int64_t i = 0; i < count; ++i) {
      const Passed& place = places_[size_t(passed - 1 - i) % kPlaces];
      places[i] = {place.op.load(std::memory_order_relaxed),
                   place.layer.load(std::memory_order_relaxed),
                   place.round.load(std::memory_order_relaxed), passed - i,
                   place.nanoseconds.load(std::memory_order_relaxed)};
    }
    return count;
  }
  static int64_t Clock() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

 private:
  struct Passed {
    std::atomic<const char*> op{""};
    std::atomic<int64_t> layer{-1}, round{-1}, nanoseconds{0};
  };
  std::array<Passed, size_t(kPlaces)> places_;
  std::atomic<const char*> op_{"start"};
  std::atomic<int64_t> layer_{-1}, round_{-1}, sequence_{0}, ticks_{0};
  std::atomic<bool> busy_{false};
};

}  // namespace toroid
