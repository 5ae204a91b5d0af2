// WorkerLink: rank 0's stream to the controller, and the next one when it breaks under a program
// that can wait.
//
// A stream that breaks is gone for good, and the world with it, unless a program is held: then it
// is dialled again, every 0.1 to 2 s with jitter, for up to 12 s (less than a lease, so that the
// program still has time to save). The controller may have been started anew meanwhile. What it
// must not miss is pushed as durable: the last message of each kind is told again on every new
// stream until it is released.
//
// Thread-safe. The callbacks come on gRPC's threads, or on the thread that dials.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rpc/dialled_stream.h"
#include "rpc/tls.h"
#include "rpc/worker_process.h"
#include "toroid/internal/v1/worker.grpc.pb.h"

namespace toroid {

class WorkerLink {
 public:
  // `message`: of this epoch, in order. `gone`: once, when there will be no stream any more.
  WorkerLink(const WorkerOptions& options, const Tls& tls,
             std::function<void(const internal::v1::WorldMessage&)> message,
             std::function<void()> gone);
  ~WorkerLink();

  // Dials; Unavailable: the controller cannot be reached; as WhyNoConnection (tls.h);
  // PermissionDenied: credential or epoch are not those of the present launch.
  absl::Status Attach();
  // Program `number` goes on without a stream, and is worth a new one.
  void Hold(uint64_t number);
  // No longer; what was durable has been taken.
  void Release();
  // Dropped while there is no stream.
  void Push(internal::v1::WorkerMessage message);
  // Nothing will be pushed soon.
  void Flush();
  void PushDurably(internal::v1::WorkerMessage message);
  bool gone() const;
  // Closes the stream behind what was pushed; waits at most `timeout` for it to be delivered.
  void Finish(absl::Duration timeout);

 private:
  using Stream = DialledStream<internal::v1::WorkerMessage, internal::v1::WorldMessage>;
  enum class State {
    kDialling,  // no answer to `attach` yet
    kAttached,
    kBroken,  // while a program is held: the thread dials
    kGone
  };

  void Dial();
  void Receive(const internal::v1::WorldMessage& message);
  void Closed(const absl::Status& status);
  void GiveUp(std::unique_lock<std::mutex>& lock);
  void Redial();

  const WorkerOptions options_;
  const Tls tls_;
  const std::function<void(const internal::v1::WorldMessage&)> message_;
  const std::function<void()> gone_;
  const std::unique_ptr<internal::v1::Workers::Stub> stub_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::kDialling;
  bool closed_ = false;  // the stream that is dialled, or was
  bool ending_ = false;
  absl::Status close_status_;
  uint64_t held_ = 0;                                 // program; 0: none
  std::vector<internal::v1::WorkerMessage> durable_;  // one of a kind, in the order of telling
  std::thread redials_;                               // once a program was held
  std::unique_ptr<Stream> stream_;                    // its end waits for its reactions
};

}  // namespace toroid
