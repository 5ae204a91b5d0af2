// CpuStreams: the streams of one rank's CPU backend, and the thread that keeps communication
// moving while compute runs.
//
// A message moves only while some thread is inside MPI. While compute runs, the communication
// thread drives every busy stream each 200 us; it sleeps while all are idle, and does not exist
// before the first communication stream. While a Join waits, the waiting thread drives the stream
// itself (CpuStream::Wait). Streams are made and joined by one thread, the rank's.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/stream.h"

namespace toroid {

class CpuStreams {
 public:
  CpuStreams() = default;
  ~CpuStreams();  // waits for nothing: what is still queued is dropped
  CpuStreams(const CpuStreams&) = delete;
  CpuStreams& operator=(const CpuStreams&) = delete;

  Stream New(bool communication);
  // s waits for what `other` has been given so far: an inline s by waiting now, a communication
  // stream by a step that holds it up.
  void Join(Stream s, Stream other);

 private:
  void Drive();

  std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false, stop_ = false;                // guarded by mutex_
  std::vector<std::unique_ptr<CpuStream>> driven_;  // guarded by mutex_
  std::vector<std::unique_ptr<CpuStream>> inline_;
  std::thread driver_;
};

}  // namespace toroid
