// Outbox: the write side of a gRPC stream of the callback API, server or client.
//
// gRPC allows one write at a time; this queues the others. Push and Close may be called from any
// thread and under any lock: the stream's own reactions take only the Outbox's lock, which is not
// held while gRPC is called. A reader that lags gets neighbours merged where `merge` can.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace toroid {

// Adds `next` to what travels behind `first` in one message; false: it would become too long.
template <typename Message>
bool AddBehind(Message& first, const Message& next) {
  constexpr int kMost = 63;
  constexpr size_t kMostBytes = 16 << 10;  // each
  if (first.more_size() >= kMost || next.ByteSizeLong() > kMostBytes) return false;
  *first.add_more() = next;
  return true;
}

template <typename Message>
class Outbox {
 public:
  // start: StartWrite of the reactor. merge(last, next): true if `next` was added to `last`.
  explicit Outbox(std::function<void(const Message*)> start,
                  std::function<bool(Message&, const Message&)> merge = nullptr)
      : start_(std::move(start)), merge_(std::move(merge)) {}

  void Push(Message message) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_ || broken_) return;
      if (merge_ != nullptr && !queue_.empty() && merge_(queue_.back(), message)) return;
      queue_.push_back(std::move(message));
      if (!TakeNext()) return;
    }
    start_(&current_);
  }

  // Between the two nothing leaves, so that what is pushed can be merged.
  void Hold() {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = true;
  }
  void Release() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      held_ = false;
      if (!TakeNext()) return;
    }
    start_(&current_);
  }

  // From OnWriteDone.
  void Written(bool ok) {
    std::function<void()> finish;
    bool more = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      writing_ = false;
      broken_ |= !ok;
      if (broken_) queue_.clear();
      more = TakeNext();
      if (!more) finish = TakeFinish();
    }
    if (more) start_(&current_);
    if (finish != nullptr) finish();
  }

  // Calls `finish` (Finish, or StartWritesDone) once, after all that was pushed has been written;
  // at once if `discard`, or as soon as a write in flight is over. Later calls do nothing.
  void Close(std::function<void()> finish, bool discard = false) {
    std::function<void()> now;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return;
      closed_ = true;
      if (discard) queue_.clear();
      finish_ = std::move(finish);
      now = TakeFinish();
    }
    if (now != nullptr) now();
  }

 private:
  bool TakeNext() {
    if (held_ || writing_ || queue_.empty()) return false;
    current_ = std::move(queue_.front());
    queue_.pop_front();
    return writing_ = true;
  }
  std::function<void()> TakeFinish() {
    if (!closed_ || writing_ || !queue_.empty()) return nullptr;
    return std::exchange(finish_, nullptr);
  }

  const std::function<void(const Message*)> start_;
  const std::function<bool(Message&, const Message&)> merge_;
  std::mutex mutex_;
  std::deque<Message> queue_;
  Message current_;
  bool held_ = false, writing_ = false, broken_ = false, closed_ = false;
  std::function<void()> finish_;
};

}  // namespace toroid
