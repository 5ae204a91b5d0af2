// Stream: an ordered queue of work on one backend. It is the first argument of every op and verb:
// there is no default stream, no current device, no thread-local.
//
// On a CPU a compute stream runs its work at once in the calling thread; a communication stream
// (CpuStream, below) runs behind it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace toroid {

class CpuStream;

struct Stream {
  CpuStream* cpu = nullptr;  // set on a CPU backend
  void* native = nullptr;    // cudaStream_t on a CUDA backend
};

// A FIFO of steps. A step is called until it returns true; its first call starts it. It never
// blocks: what must be waited for is polled. Any thread may drive the stream (one at a time gets
// in): the communication thread while compute runs, the waiting thread itself while a Join waits,
// since a message moves only while some thread is inside MPI.
//
// Thread-safe. Enqueue never waits for a running step, unless the stream is inline.
class CpuStream {
 public:
  // inline_work: Enqueue returns when the step is done, and the queue is always empty after it.
  // on_work is called after each Enqueue, to wake whoever drives the stream; null: nobody.
  explicit CpuStream(bool inline_work, std::function<void()> on_work = nullptr)
      : inline_(inline_work), on_work_(std::move(on_work)) {}

  void Enqueue(std::function<bool()> step);
  // Runs the oldest steps until one is not yet done; true if the queue is now empty.
  bool Drive();
  // Drives until the queue is empty: spins for 20 us, then yields between attempts.
  void Wait();
  // Of all Waits that found something not yet done: what communication did not hide.
  double waited_seconds() const { return double(waited_ns_.load()) * 1e-9; }
  bool idle() const;
  bool is_inline() const { return inline_; }
  // Steps ever given, and done. What was given before some moment is done once done() has reached
  // the given() of that moment.
  int64_t given() const;
  int64_t done() const;

 private:
  const bool inline_;
  const std::function<void()> on_work_;
  std::mutex drive_mutex_;  // held while a step runs: admits one driver
  mutable std::mutex mutex_;
  std::deque<std::function<bool()>> steps_;  // guarded by mutex_; the front outlives push_back
  int64_t given_ = 0;                        // guarded by mutex_
  std::atomic<int64_t> waited_ns_{0};
};

// out = x, `bytes` of memory of the device that s.native is a stream of, in the stream's order.
void CopyOnDevice(Stream s, const void* x, void* out, int64_t bytes);

}  // namespace toroid
