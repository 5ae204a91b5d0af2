#include "rpc/exchange_link.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>
#include <sys/random.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "rpc/exchange_link_state.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"

namespace toroid {
namespace exchange {

constexpr absl::Duration kLinger = absl::Seconds(5);

namespace {

// The first term: of other frames nothing can be understood.
PodIdentity WithFrameFormat(PodIdentity identity) {
  identity.terms.insert(identity.terms.begin(), absl::StrCat(kFrameFormatTerm, kPodFrameFormat));
  return identity;
}

}  // namespace

Link::Link(PodIdentity identity, const GrpcPodLinkOptions& options)
    : identity_(WithFrameFormat(std::move(identity))), options_(options), service_(this) {
  (void)getrandom(&incarnation_, sizeof(incarnation_), 0);
}

absl::Status Link::Listen() {
  TOROID_RETURN_IF_ERROR(CheckListenAddress(options_.listen, options_.tls));
  QuietGrpc();
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen, ListenCredentials(options_.tls), &port_);
  SetServerLimits(&builder);
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    server_.reset();
    return CannotListen(options_.listen, "give another address");
  }
  thread_ = std::thread([this] { Pump(); });
  return absl::OkStatus();
}

Link::~Link() {
  std::vector<std::shared_ptr<Flow>> flows;
  {
    Lock lock(mutex_);
    const absl::Time limit = absl::Now() + kLinger;
    const auto delivered = [&] {
      for (const auto& [rank, peer] : peers_) {
        if (refused_.ok() && !peer.removed && peer.up() && !peer.address.empty() &&
            !peer.out.received_all()) {
          return false;
        }
      }
      return true;
    };
    while (!delivered() && Wait(lock, limit)) {
    }
    // The end of a server cancels what it has not answered: the others would not learn why this one
    // ends, and wait for it.
    while (!AllAreAnswered() && Wait(lock, limit)) {
    }
    stopping_ = true;
    for (const auto& [rank, peer] : peers_) {
      for (const auto& flow : peer.flows) {
        if (flow != nullptr) flows.push_back(flow);
      }
    }
    pump_.notify_all();
    probe_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  if (prober_.joinable()) prober_.join();
  for (const auto& flow : flows) flow->context.TryCancel();
  if (server_ != nullptr) {
    server_->Shutdown(absl::ToChronoTime(absl::Now()));
    server_->Wait();
  }
  Lock lock(mutex_);
  changed_.wait(lock,
                [this] { return flows_alive_ == 0 && answers_alive_ == 0 && arrivals_.empty(); });
}

// What was refused has been told so.
bool Link::AllAreAnswered() const {
  return answers_alive_ == 0 &&
         std::none_of(arrivals_.begin(), arrivals_.end(),
                      [](const auto& arrival) { return arrival.first->refused; });
}

void Link::Answers(int more) {
  const std::lock_guard lock(mutex_);
  answers_alive_ += more;
  changed_.notify_all();
}

bool Link::Wait(Lock& lock, absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) {
    changed_.wait(lock);
    return true;
  }
  if (absl::Now() >= deadline) return false;
  changed_.wait_until(lock, absl::ToChronoTime(deadline));
  return true;
}

wire::ExchangeIdentity Link::Card() const {
  wire::ExchangeIdentity card;
  card.set_job(identity_.job);
  card.set_pod(identity_.self.pod);
  card.set_rank(identity_.self.rank);
  card.set_epoch(identity_.epoch);
  card.set_incarnation(incarnation_);
  for (const std::string& term : identity_.terms) card.add_terms(term);
  return card;
}

Peer& Link::PeerOf(PodRank rank) {
  return peers_.try_emplace(rank, options_.queue_bytes, options_.throttle, options_.flows)
      .first->second;
}

void Link::AddPeer(PodRank rank, const std::string& address) {
  std::vector<std::shared_ptr<StreamStub>> stubs;
  for (int i = 0; i <= options_.flows; ++i) {  // each its own connection
    stubs.push_back(std::make_shared<StreamStub>(grpc::CreateCustomChannel(
        address, DialCredentials(options_.tls), ClientChannelArguments())));
  }
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(rank);
    if (!peer.address.empty()) Forget(peer);
    peer.address = address;
    peer.reached = false;
    peer.doubts = 0;
    peer.stubs = std::move(stubs);
    peer.removed = false;
    pump_.notify_all();
  }
  Cut(rank, absl::ZeroDuration());
}

// Its launch is no more: what waits for it is nobody's, and numbers begin anew.
void Link::Forget(Peer& peer) {
  peer.out.LineFound();
  peer.out.Restart();
  peer.takes = Launch();
  peer.wanted = peer.was_up = false;
  peer.came_up.assign(peer.came_up.size(), false);
  peer.heard = absl::InfinitePast();
  ++peer.added;
  for (const auto& flow : peer.flows) {
    if (flow == nullptr) continue;
    flow->abandoned = true;
    flow->up = false;
  }
  changed_.notify_all();
}

void Link::RemovePeer(PodRank rank) {
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(rank);
    Forget(peer);
    peer.removed = true;
  }
  Cut(rank, absl::ZeroDuration());
}

// --- callers
// --------------------------------------------------------------------------------------

absl::Status Link::Send(PodRank to, PodMessage message, absl::Time deadline) {
  const int64_t bytes = static_cast<int64_t>(message.payload.size());
  if (bytes > kMostPodPayload) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", bytes, " bytes to ",
                                                   ToString(to), ": at most ", kMostPodPayload));
  }
  Lock lock(mutex_);
  const auto found = peers_.find(to);
  if (found == peers_.end() || found->second.address.empty()) {
    return absl::NotFoundError(
        absl::StrCat(ToString(to), " is no peer of ", ToString(identity_.self)));
  }
  Peer& peer = found->second;
  const uint64_t added = peer.added;
  while (true) {
    TOROID_RETURN_IF_ERROR(peer.refused);
    if (peer.removed || peer.added != added) return absl::OkStatus();
    if (peer.out.HasRoom(bytes)) break;
    if (Wait(lock, deadline)) continue;
    const std::string why =
        peer.up() ? "" : absl::StrCat(": its line is down: ", peer.trouble.message());
    return absl::DeadlineExceededError(absl::StrCat(ToString(to), " at ", peer.address,
                                                    " has not taken ", peer.out.waiting_bytes(),
                                                    " bytes of what was sent before", why));
  }
  counters_.payload_sent += bytes;
  peer.wanted = true;
  peer.out.Add(std::move(message));
  pump_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<std::optional<PodMessage>> Link::Receive(absl::Time deadline) {
  Lock lock(mutex_);
  while (true) {
    TOROID_RETURN_IF_ERROR(refused_);
    if (!inbox_.empty()) break;
    if (!Wait(lock, deadline)) return std::nullopt;
  }
  Here here = std::move(inbox_.front());
  inbox_.pop_front();
  counters_.payload_received += static_cast<int64_t>(here.message.payload.size());
  Peer& peer = PeerOf(here.from);
  peer.in.TookOne();
  wire::StreamAck ack;
  ack.set_received(peer.in.received());
  ack.set_taken(peer.in.taken());
  // On every flow: one that has been cut already, which nobody has noticed yet, tells nothing. And
  // under the mutex, so that hello stays the first word of a flow and numbers never go back.
  for (const auto& arrival : peer.arrivals) {
    if (arrival->launch == peer.sends) arrival->Push(ack);
  }
  return std::move(here.message);
}

absl::Time Link::LastHeard(int64_t pod) const {
  const std::lock_guard lock(mutex_);
  std::optional<absl::Time> quietest;
  for (const auto& [rank, peer] : peers_) {
    const bool met = peer.wanted || peer.sends.known;  // others of the table have no line
    if (rank.pod != pod || peer.removed || !met) continue;
    quietest = std::min(quietest.value_or(peer.heard), peer.heard);
  }
  return quietest.value_or(absl::InfinitePast());
}

void Link::Cut(PodRank rank, absl::Duration pause) {
  std::vector<std::shared_ptr<Flow>> flows;
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(rank);
    peer.next_dial = absl::Now() + pause;
    for (const auto& flow : peer.flows) {
      if (flow != nullptr) flows.push_back(flow);
    }
  }
  for (const auto& flow : flows) flow->context.TryCancel();
}

}  // namespace exchange

absl::StatusOr<std::unique_ptr<GrpcPodLink>> NewGrpcPodLink(PodIdentity identity,
                                                            const GrpcPodLinkOptions& options) {
  auto link = std::make_unique<exchange::Link>(std::move(identity), options);
  TOROID_RETURN_IF_ERROR(link->Listen());
  return std::unique_ptr<GrpcPodLink>(std::move(link));
}

}  // namespace toroid
