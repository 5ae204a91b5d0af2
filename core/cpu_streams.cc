#include "core/cpu_streams.h"

#include <chrono>

#include "core/check.h"

namespace toroid {

CpuStreams::~CpuStreams() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (driver_.joinable()) driver_.join();
}

Stream CpuStreams::New(bool communication) {
  Stream s;
  if (!communication) {
    inline_.push_back(std::make_unique<CpuStream>(true));
    s.cpu = inline_.back().get();
    return s;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  driven_.push_back(std::make_unique<CpuStream>(false, [this] {
    {
      std::lock_guard<std::mutex> work(mutex_);
      if (busy_) return;
      busy_ = true;
    }
    changed_.notify_all();
  }));
  s.cpu = driven_.back().get();
  if (!driver_.joinable()) driver_ = std::thread([this] { Drive(); });
  return s;
}

void CpuStreams::Join(Stream s, Stream other) {
  TOROID_CHECK(s.cpu != nullptr && other.cpu != nullptr);
  if (s.cpu == other.cpu || other.cpu->is_inline()) return;
  if (s.cpu->is_inline()) {
    other.cpu->Wait();
    return;
  }
  CpuStream* awaited = other.cpu;
  const int64_t given = awaited->given();
  s.cpu->Enqueue([awaited, given] { return awaited->done() >= given; });
}

// Who waits for s alone moves the stream that s waits for by this thread's rounds.
void CpuStreams::Drive() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || busy_; });
    if (stop_) return;
    busy_ = false;  // an Enqueue from here on says so again
    std::vector<CpuStream*> streams;
    for (const auto& stream : driven_) streams.push_back(stream.get());
    lock.unlock();
    bool idle = true;
    for (CpuStream* stream : streams) idle = stream->Drive() && idle;
    lock.lock();
    if (idle) continue;
    changed_.wait_for(lock, std::chrono::microseconds(200), [this] { return stop_; });
    busy_ = true;
  }
}

}  // namespace toroid
