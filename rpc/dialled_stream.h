// DialledStream: the client's side of a bidirectional stream, as agents and workers hold one.
//
// A thread of its own waits for what arrives and writes what was pushed: gRPC's callback API keeps
// two that wake each other for every message, and whoever pushes would write to the socket itself,
// which costs a rank that computes more than waking this one.
//
// What is pushed leaves at once, but on a busy stream, which wrote less than kGather ago, what
// comes in the meantime leaves with it, in one message where `merge` can: a message costs both ends
// more than most programs' answers are worth.
//
// Thread-safe. `message` and `closed` are called on the stream's thread, one at a time, `closed`
// once and last; they must not destroy the stream. Push may be called under any lock: the thread
// holds none of its own while it calls them.
#pragma once

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rpc/grpc_status.h"

namespace toroid {

template <typename Out, typename In>
class DialledStream {
 public:
  using Call = grpc::ClientAsyncReaderWriter<Out, In>;

  // merge(last, next): true if `next`, pushed behind `last` that waits to be written, was added to
  // it.
  DialledStream(std::function<void(const In&)> message,
                std::function<void(const absl::Status&)> closed,
                std::function<bool(Out&, const Out&)> merge = nullptr)
      : message_(std::move(message)), closed_(std::move(closed)), merge_(std::move(merge)) {}

  // Cancels what is left and waits for `closed`.
  ~DialledStream() {
    if (call_ == nullptr) return;
    context_.TryCancel();
    thread_.join();
  }
  DialledStream(const DialledStream&) = delete;
  DialledStream& operator=(const DialledStream&) = delete;

  grpc::ClientContext* context() { return &context_; }
  grpc::CompletionQueue* events() { return &events_; }

  // Once; the call: of the stub's PrepareAsync.. with context() and events().
  void Begin(std::unique_ptr<Call> call) {
    call_ = std::move(call);
    thread_ = std::thread([this] { Run(); });
  }
  // Dropped once the stream has ended.
  void Push(Out out) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ending_ || over_) return;
      if (merge_ == nullptr || waiting_.empty() || !merge_(waiting_.back(), out)) {
        waiting_.push_back(std::move(out));
      }
      if (!MustWake()) return;
    }
    Wake();
  }
  // No more will be pushed soon: what waits for company leaves now.
  void Flush() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!woken_) return;
      flushed_ = true;
    }
    gathered_.notify_one();
  }
  // Ends the stream after what was pushed; `closed` follows.
  void End() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::exchange(ending_, true) || over_) return;
      gathered_.notify_one();
      if (!MustWake()) return;
    }
    Wake();
  }
  void Cancel() { context_.TryCancel(); }
  // False: not closed within `timeout`.
  bool WaitClosed(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return done_; });
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kGather{300};
  enum Event : intptr_t { kStarted = 1, kRead, kWritten, kWoken, kFinished };
  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  // Under the lock: whether the thread is to be woken to write; it then is to be, by Wake.
  bool MustWake() {
    // Else it will look by itself.
    if (!started_ || writing_ || woken_ || std::this_thread::get_id() == own_) return false;
    return woken_ = true;
  }
  // At once: a time that is to come is rounded up to milliseconds.
  void Wake() { alarm_.Set(&events_, gpr_time_0(GPR_CLOCK_REALTIME), Tag(kWoken)); }

  void Run() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      own_ = std::this_thread::get_id();
    }
    call_->StartCall(Tag(kStarted));
    void* tag = nullptr;
    bool ok = false;
    while (events_.Next(&tag, &ok)) {
      const auto event = static_cast<Event>(reinterpret_cast<intptr_t>(tag));
      if (event == kWoken) Gather();
      Happened(event, ok);
      WriteNext();
      if (finished_ && !Pending()) break;
    }
    events_.Shutdown();
    while (events_.Next(&tag, &ok)) continue;
    closed_(FromGrpc(status_));
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  void Happened(Event event, bool ok) {
    if (event == kRead && ok) {
      message_(in_);
      return call_->Read(&in_, Tag(kRead));
    }
    if (event == kStarted && ok) call_->Read(&in_, Tag(kRead));
    // No more is to be read: how did it end? A stream that cannot be written to ends too.
    if ((event == kRead || event == kStarted) && !ok) call_->Finish(&status_, Tag(kFinished));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (event == kStarted) started_ = true;
    if (event == kWritten) writing_ = false;
    if (event == kWoken) woken_ = false;
    if (event == kFinished) finished_ = true;
    if (!ok && event != kWoken) over_ = true;
    over_ = over_ || finished_;
  }

  void Gather() {
    std::unique_lock<std::mutex> lock(mutex_);
    gathered_.wait_until(lock, written_ + kGather, [this] { return flushed_ || ending_ || over_; });
    flushed_ = false;
  }

  // What waits, once nothing is being written.
  void WriteNext() {
    bool ends = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (over_ || !started_ || writing_) return;
      ends = waiting_.empty();
      if (ends && (!ending_ || std::exchange(writes_done_, true))) return;
      writing_ = true;
      written_ = Clock::now();
      if (!ends) {
        out_ = std::move(waiting_.front());
        waiting_.pop_front();
      }
    }
    if (ends) {
      call_->WritesDone(Tag(kWritten));
    } else {
      call_->Write(out_, Tag(kWritten));
    }
  }

  // Events that are still to come.
  bool Pending() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return writing_ || woken_;
  }

  const std::function<void(const In&)> message_;
  const std::function<void(const absl::Status&)> closed_;
  const std::function<bool(Out&, const Out&)> merge_;
  grpc::ClientContext context_;
  grpc::CompletionQueue events_;
  std::unique_ptr<Call> call_;
  grpc::Alarm alarm_;
  std::mutex mutex_;
  std::condition_variable changed_, gathered_;
  std::thread::id own_;
  std::deque<Out> waiting_;
  bool started_ = false, writing_ = false, woken_ = false;  // woken_: kWoken is to come
  bool ending_ = false, over_ = false, done_ = false;       // over_: nothing can be written
  bool flushed_ = false;
  Clock::time_point written_;  // when the last write began
  // Of the thread.
  In in_;
  Out out_;
  bool writes_done_ = false, finished_ = false;
  grpc::Status status_;
  std::thread thread_;
};

}  // namespace toroid
