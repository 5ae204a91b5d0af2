#include "rpc/worker_link.h"

#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_stream.h"

namespace toroid {
namespace {

using internal::v1::WorkerMessage;
using internal::v1::WorldMessage;

constexpr absl::Duration kAttachTimeout = absl::Seconds(10);
constexpr absl::Duration kRedialLimit = absl::Seconds(12);  // of a lease of 15
constexpr double kFirstWait = 0.1, kLongestWait = 2;        // seconds between attempts

WorldId WorldOf(const WorkerOptions& options) { return {options.job, options.epoch, options.view}; }

// What the controller has not taken yet is told together.
bool Merge(WorkerMessage& first, const WorkerMessage& next) {
  const int behind = first.more_size();
  WorkerMessage& last = behind > 0 ? *first.mutable_more(behind - 1) : first;
  const bool same = last.number() == next.number();
  if (same && last.has_tokens() && next.has_tokens()) {
    last.mutable_tokens()->MergeFrom(next.tokens());
    return true;
  }
  if (same && last.has_progress() && next.has_progress()) {
    *last.mutable_progress() = next.progress();
    return true;
  }
  return AddBehind(first, next);
}

}  // namespace

WorkerLink::WorkerLink(const WorkerOptions& options, const Tls& tls,
                       std::function<void(const WorldMessage&)> message, std::function<void()> gone)
    : options_(options),
      tls_(tls),
      message_(std::move(message)),
      gone_(std::move(gone)),
      stub_(internal::v1::Workers::NewStub(grpc::CreateCustomChannel(
          options.controller, DialCredentials(tls_), ClientChannelArguments()))) {}

WorkerLink::~WorkerLink() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (redials_.joinable()) redials_.join();
  stream_.reset();
}

// Under the lock; there is no stream.
void WorkerLink::Dial() {
  closed_ = false;
  stream_ = std::make_unique<Stream>([this](const WorldMessage& message) { Receive(message); },
                                     [this](const absl::Status& status) { Closed(status); }, Merge);
  stream_->context()->set_wait_for_ready(true);
  stream_->Begin(stub_->PrepareAsyncAttach(stream_->context(), stream_->events()));
  WorkerMessage message;
  *message.mutable_world() = ToProto(WorldOf(options_));
  internal::v1::Attach& attach = *message.mutable_attach();
  attach.set_pod(options_.pod);
  attach.set_credential(options_.credential);
  attach.set_pid(getpid());
  attach.set_program(held_);
  char host[256] = "";
  (void)gethostname(host, sizeof(host) - 1);
  attach.set_host(host);
  stream_->Push(std::move(message));
}

absl::Status WorkerLink::Attach() {
  std::unique_lock<std::mutex> lock(mutex_);
  Dial();
  const bool heard = changed_.wait_for(lock, absl::ToChronoMilliseconds(kAttachTimeout),
                                       [this] { return state_ != State::kDialling; });
  if (!heard) {
    TOROID_RETURN_IF_ERROR(WhyNoConnection(options_.controller, tls_));
    return absl::UnavailableError(
        absl::StrCat("controller is not reachable: ", options_.controller));
  }
  if (state_ == State::kAttached) return absl::OkStatus();
  return close_status_.ok() ? absl::UnavailableError("the stream was closed") : close_status_;
}

void WorkerLink::Hold(uint64_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_ = number;
  if (!redials_.joinable()) redials_ = std::thread([this] { Redial(); });
}

void WorkerLink::Release() {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_ = 0;
  durable_.clear();
}

void WorkerLink::Push(WorkerMessage message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kAttached) stream_->Push(std::move(message));
}

void WorkerLink::Flush() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kAttached) stream_->Flush();
}

void WorkerLink::PushDurably(WorkerMessage message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(durable_, [&message](const WorkerMessage& older) {
    return older.body_case() == message.body_case();
  });
  durable_.push_back(message);
  if (state_ == State::kAttached) stream_->Push(std::move(message));
}

bool WorkerLink::gone() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kGone;
}

void WorkerLink::Finish(absl::Duration timeout) {
  Stream* stream = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (redials_.joinable()) redials_.join();  // nobody changes the stream from here on
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream = stream_.get();
  }
  if (stream == nullptr) return;
  stream->End();
  if (!stream->WaitClosed(timeout)) stream->Cancel();
}

void WorkerLink::Receive(const WorldMessage& message) {
  if (message.more_size() > 0) {
    WorldMessage first = message;
    first.clear_more();
    Receive(first);
    for (const WorldMessage& next : message.more()) Receive(next);
    return;
  }
  if (!(FromProto(message.world()) == WorldOf(options_))) return;  // not of this epoch
  if (!message.has_attached()) return message_(message);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_ == State::kGone) return;  // too late
  state_ = State::kAttached;
  for (const WorkerMessage& durable : durable_) stream_->Push(durable);
  changed_.notify_all();
}

void WorkerLink::Closed(const absl::Status& status) {
  std::unique_lock<std::mutex> lock(mutex_);
  closed_ = true;
  close_status_ = status;
  if (state_ == State::kAttached && held_ != 0 && !ending_) state_ = State::kBroken;
  changed_.notify_all();
  if (state_ != State::kBroken) GiveUp(lock);
}

void WorkerLink::GiveUp(std::unique_lock<std::mutex>& lock) {
  if (state_ == State::kGone) return;
  state_ = State::kGone;
  changed_.notify_all();
  lock.unlock();
  gone_();
  lock.lock();
}

void WorkerLink::Redial() {
  std::minstd_rand random(static_cast<unsigned>(getpid()));
  std::uniform_real_distribution<double> jitter(0.5, 1);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || state_ == State::kBroken; });
    const absl::Time until = absl::Now() + kRedialLimit;
    for (double wait = kFirstWait; state_ == State::kBroken && !ending_;
         wait = std::min(2 * wait, kLongestWait)) {
      if (absl::Now() > until || absl::IsPermissionDenied(close_status_)) {
        GiveUp(lock);
        break;
      }
      const absl::Duration pause = absl::Seconds(wait * jitter(random));
      if (changed_.wait_for(lock, absl::ToChronoMilliseconds(pause), [this] { return ending_; })) {
        break;
      }
      std::unique_ptr<Stream> old = std::move(stream_);
      lock.unlock();
      old.reset();  // waits for its reactions, which take the lock
      lock.lock();
      Dial();
      const auto answered = [this] { return ending_ || closed_ || state_ != State::kBroken; };
      changed_.wait_for(lock, absl::ToChronoMilliseconds(absl::Seconds(kLongestWait)), answered);
    }
    if (ending_) return;
  }
}

}  // namespace toroid
