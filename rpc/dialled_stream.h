// DialledStream: the client's side of a bidirectional stream, as agents and workers hold one.
//
// Thread-safe. `message` and `closed` are called on gRPC's threads, one at a time, `closed` once
// and last; they must not destroy the stream.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rpc/grpc_status.h"
#include "rpc/grpc_stream.h"

namespace toroid {

template <typename Out, typename In>
class DialledStream final : public grpc::ClientBidiReactor<Out, In> {
 public:
  DialledStream(std::function<void(const In&)> message,
                std::function<void(const absl::Status&)> closed,
                std::function<bool(Out&, const Out&)> merge = nullptr)
      : message_(std::move(message)),
        closed_(std::move(closed)),
        outbox_([this](const Out* out) { this->StartWrite(out); }, std::move(merge)) {}

  // Cancels what is left and waits for `closed`.
  ~DialledStream() override {
    if (!begun_) return;
    context_.TryCancel();
    (void)WaitClosed(absl::InfiniteDuration());
  }

  grpc::ClientContext* context() { return &context_; }

  // After the stub's method has been called with context() and this.
  void Begin() {
    begun_ = true;
    this->AddHold();  // for writes from outside of the reactions, until the outbox is closed
    this->StartRead(&in_);
    this->StartCall();
  }
  void Push(Out out) { outbox_.Push(std::move(out)); }
  // Ends the stream after what was pushed; `closed` follows.
  void End() {
    outbox_.Close([this] {
      this->StartWritesDone();
      this->RemoveHold();
    });
  }
  void Cancel() { context_.TryCancel(); }
  // False: not closed within `timeout`.
  bool WaitClosed(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (timeout == absl::InfiniteDuration()) {
      changed_.wait(lock, [this] { return done_; });
      return true;
    }
    return changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return done_; });
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      outbox_.Close([this] { this->RemoveHold(); }, /*discard=*/true);
      return;
    }
    message_(in_);
    this->StartRead(&in_);
  }
  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnDone(const grpc::Status& status) override {
    closed_(FromGrpc(status));
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

 private:
  const std::function<void(const In&)> message_;
  const std::function<void(const absl::Status&)> closed_;
  grpc::ClientContext context_;
  Outbox<Out> outbox_;
  In in_;
  bool begun_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
};

}  // namespace toroid
