#include <grpcpp/create_channel.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "rpc/error_info.h"
#include "rpc/exchange_link_state.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"

namespace toroid::exchange {

constexpr absl::Duration kMeetCall = absl::Seconds(1);
constexpr absl::Duration kProbe = absl::Milliseconds(500);  // the most it takes, and between two

// What the caller is told of us; what we are told of it stays.
absl::Status Link::Compare(const PodIdentity& other) {
  if (other.self.pod == identity_.self.pod) {
    return absl::FailedPreconditionError(
        absl::StrCat("pod ", other.self.pod, " is there twice: give each pod its own number"));
  }
  const absl::Status ours = CompareTerms(identity_, other);
  if (ours.ok()) return ours;
  Refuse(other.self, ours);
  return CompareTerms(other, identity_);
}

void Link::Refuse(PodRank rank, const absl::Status& why) {
  Peer& peer = PeerOf(rank);
  // A later launch: it is not reached, and whoever waits for it will say so; the others go on.
  if (peer.added > 0 && !absl::IsDataLoss(why)) {
    peer.removed = true;
    peer.trouble = why;
    pump_.notify_all();
    return;
  }
  if (peer.refused.ok()) peer.refused = why;
  if (refused_.ok()) refused_ = why;
  changed_.notify_all();
  pump_.notify_all();
}

absl::Status Link::Met(const wire::MeetRequest& request, wire::MeetResponse* response) {
  const std::lock_guard lock(mutex_);
  TOROID_RETURN_IF_ERROR(Compare(FromProto(request.identity())));
  if (addresses_.empty()) {
    return absl::UnavailableError(
        absl::StrCat(ToString(identity_.self), " still gathers its ranks"));
  }
  *response->mutable_identity() = Card();
  for (const std::string& address : addresses_) response->add_addresses(address);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Link::Meet(int64_t pod, const std::string& address,
                                                    absl::Time deadline) {
  const auto stub = wire::Exchange::NewStub(
      grpc::CreateCustomChannel(address, DialCredentials(options_.tls), ClientChannelArguments()));
  while (true) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    const absl::Time limit = std::min(deadline, absl::Now() + kMeetCall);
    context.set_deadline(absl::ToChronoTime(limit));
    wire::MeetRequest request;
    *request.mutable_identity() = Card();
    wire::MeetResponse response;
    const absl::Status met = FromGrpc(stub->Meet(&context, request, &response));
    if (met.ok()) {
      if (response.identity().pod() != pod) {
        return absl::FailedPreconditionError(absl::StrCat("pod ", response.identity().pod(),
                                                          " listens at ", address, ", not pod ",
                                                          pod, ": give all pods the same list"));
      }
      return std::vector<std::string>(response.addresses().begin(), response.addresses().end());
    }
    // Cancelled: by the other side, which ends.
    if (met.code() != absl::StatusCode::kUnavailable &&
        met.code() != absl::StatusCode::kDeadlineExceeded &&
        met.code() != absl::StatusCode::kCancelled) {
      return met;
    }
    {
      const std::lock_guard lock(mutex_);  // it may have ended as it was refused here
      TOROID_RETURN_IF_ERROR(refused_);
    }
    // A peer that ends while it is probed looks like one that refuses: once is not enough.
    if (!WhyNoConnection(address, options_.tls).ok()) {
      absl::SleepFor(kRedial);
      TOROID_RETURN_IF_ERROR(WhyNoConnection(address, options_.tls));
    }
    Lock lock(mutex_);
    TOROID_RETURN_IF_ERROR(refused_);
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("pod ", pod, " does not answer: ", address,
                                                      ": ", met.message(),
                                                      ": start it, or correct its address"));
    }
    (void)changed_.wait_for(lock, absl::ToChronoMilliseconds(kRedial));
  }
}

// --- why a peer is not reached -------------------------------------------------------------------

// gRPC does not tell a peer that is not there yet from one whom TLS keeps apart for good.
void Link::Doubt(Peer& peer, PodRank rank) {
  if (stopping_ || peer.reached || peer.removed || !peer.refused.ok()) return;
  if (absl::Now() < peer.next_probe) return;
  peer.next_probe = absl::Now() + kProbe;
  doubted_.insert(rank);
  if (!prober_.joinable()) prober_ = std::thread([this] { Probe(); });
  probe_.notify_all();
}

// Twice in a row, as Meet does.
void Link::Probe() {
  Lock lock(mutex_);
  while (!stopping_) {
    if (doubted_.empty()) {
      probe_.wait(lock);
      continue;
    }
    const PodRank rank = *doubted_.begin();
    doubted_.erase(doubted_.begin());
    Peer& peer = PeerOf(rank);
    const std::string address = peer.address;
    lock.unlock();
    const absl::Status why = WhyNoConnection(address, options_.tls, kProbe);
    lock.lock();
    peer.next_probe = absl::Now() + kProbe;
    if (peer.reached || peer.removed || peer.address != address) continue;
    peer.doubts = why.ok() ? 0 : peer.doubts + 1;
    if (peer.doubts < 2) continue;
    Refuse(rank, WithErrorInfo(absl::Status(why.code(), absl::StrCat("no line to ", ToString(rank),
                                                                     ": ", why.message())),
                               GetErrorInfo(why)));
  }
}

}  // namespace toroid::exchange
