// ThreadPool: the workers of one rank. A kernel splits its work into chunks and every worker takes
// the next chunk until none is left, so unequal chunks balance if the longest come first.
//
// Chunk boundaries depend on count and grain alone, never on the number of threads: a kernel whose
// chunks write disjoint outputs gives the same bits on any number of threads. The calling thread is
// worker 0. Idle workers spin for about 60 us, then sleep; a call never waits for a sleeping worker
// to wake, so a pool with more threads than cores is slower but never stuck.
//
// One thread at a time may call ParallelFor; calls do not nest. Any number of pools may coexist.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace toroid {

class ThreadPool {
 public:
  // Bytes of scratch() and of shared_scratch(), 4096-byte aligned. Pages are backed when first
  // written.
  static constexpr int64_t kScratchBytes = int64_t{2} << 20;

  // threads >= 1, the caller included. `ticks`, unless null, is raised after each chunk: a sign of
  // life from inside long kernels; it outlives the pool.
  explicit ThreadPool(int threads, std::atomic<int64_t>* ticks = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls fn(begin, end, worker) for the chunks [i grain, min(count, (i + 1) grain)), each once,
  // starting in ascending order; returns when all are done. 0 <= worker < threads().
  template <typename Fn>
  void ParallelFor(int64_t count, int64_t grain, Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    Run(
        count, grain,
        [](void* f, int64_t begin, int64_t end, int worker) {
          (*static_cast<F*>(f))(begin, end, worker);
        },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // A buffer of one worker, so that kernels never allocate. Its content is lost between chunks.
  void* scratch(int worker) const { return scratch_ + worker * kScratchBytes; }
  // A buffer of the whole pool, for results that one ParallelFor hands to the next.
  void* shared_scratch() const { return scratch_ + threads_ * kScratchBytes; }

 private:
  using Body = void (*)(void*, int64_t, int64_t, int);

  void Run(int64_t count, int64_t grain, Body body, void* context);
  void Tick() {
    if (ticks_ != nullptr) ticks_->fetch_add(1, std::memory_order_relaxed);
  }
  void RunChunks(int worker);
  void WorkerLoop(int worker);

  const int threads_;
  std::atomic<int64_t>* const ticks_;
  char* scratch_ = nullptr;

  // The job, written while the gate is shut and nobody is inside.
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  // Bit 31: open. Below it: workers inside. A worker that comes when it is shut goes back to sleep.
  alignas(64) std::atomic<uint32_t> gate_{0};
  alignas(64) std::atomic<int32_t> calls_{0};  // what sleeping workers watch
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace toroid
