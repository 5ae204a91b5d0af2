#include "core/stream.h"

#include <chrono>
#include <thread>
#include <utility>

#include "core/check.h"

namespace toroid {

void CpuStream::Enqueue(std::function<bool()> step) {
  TOROID_CHECK(step != nullptr);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    steps_.push_back(std::move(step));
    ++given_;
  }
  if (on_work_) on_work_();
  if (inline_) Wait();
}

bool CpuStream::Drive() {
  std::lock_guard<std::mutex> driving(drive_mutex_);
  for (;;) {
    std::function<bool()>* step;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (steps_.empty()) return true;
      step = &steps_.front();
    }
    if (!(*step)()) return false;
    std::function<bool()> done;  // what it holds is released outside the lock
    std::lock_guard<std::mutex> lock(mutex_);
    done = std::move(steps_.front());
    steps_.pop_front();
  }
}

void CpuStream::Wait() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  if (Drive()) return;
  do {
    if (Clock::now() > begin + std::chrono::microseconds(20)) std::this_thread::yield();
  } while (!Drive());
  waited_ns_ += std::chrono::nanoseconds(Clock::now() - begin).count();
}

bool CpuStream::idle() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return steps_.empty();
}

int64_t CpuStream::given() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return given_;
}

int64_t CpuStream::done() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return given_ - int64_t(steps_.size());
}

}  // namespace toroid
