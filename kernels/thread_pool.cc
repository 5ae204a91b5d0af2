#include "kernels/thread_pool.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace toroid {

namespace {

constexpr uint32_t kOpen = uint32_t{1} << 31;
constexpr auto kSpin = std::chrono::microseconds(60);

// Spins until done() or for kSpin; true if done().
template <typename Done>
bool SpinUntil(Done done) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::atomic<int64_t>* ticks)
    : threads_(std::max(threads, 1)), ticks_(ticks) {
  void* memory = mmap(nullptr, (threads_ + 1) * kScratchBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "no address space for the scratch of %d threads\n", threads_);
    std::abort();
  }
  scratch_ = static_cast<char*>(memory);
  workers_.reserve(threads_ - 1);
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  calls_.fetch_add(1);
  calls_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  munmap(scratch_, (threads_ + 1) * kScratchBytes);
}

void ThreadPool::Run(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (threads_ == 1 || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(context, begin, std::min(begin + grain, count), 0);
      Tick();
    }
    return;
  }
  body_ = body;
  context_ = context;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  calls_.fetch_add(1, std::memory_order_release);
  calls_.notify_all();
  RunChunks(0);
  // All chunks are taken. Shut the gate, then wait for the workers still inside.
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  const auto all_out = [this] { return gate_.load(std::memory_order_acquire) == 0; };
  while (!SpinUntil(all_out)) std::this_thread::yield();
}

void ThreadPool::RunChunks(int worker) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    body_(context_, begin, std::min(begin + grain_, count_), worker);
    Tick();
  }
}

void ThreadPool::WorkerLoop(int worker) {
  int32_t seen = 0;
  for (;;) {
    const auto called = [&] { return calls_.load(std::memory_order_acquire) != seen; };
    if (!SpinUntil(called)) calls_.wait(seen, std::memory_order_acquire);
    seen = calls_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    uint32_t gate = gate_.load(std::memory_order_relaxed);
    while ((gate & kOpen) != 0) {
      if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
        RunChunks(worker);
        gate_.fetch_sub(1, std::memory_order_release);
        break;
      }
    }
  }
}

}  // namespace toroid
