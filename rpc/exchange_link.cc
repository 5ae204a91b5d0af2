#include "rpc/exchange_link.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/random.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_method.h"
#include "rpc/grpc_stream.h"
#include "rpc/pod_stream.h"
#include "toroid/internal/v1/exchange.grpc.pb.h"

namespace toroid {
namespace {

namespace wire = internal::v1;

constexpr absl::Duration kRedial = absl::Milliseconds(100);
constexpr absl::Duration kHelloLimit = absl::Seconds(15);
constexpr absl::Duration kLinger = absl::Seconds(5);
constexpr absl::Duration kMeetCall = absl::Seconds(1);

// A launch of a rank, as its epoch and its process tell.
struct Launch {
  uint64_t epoch = 0, incarnation = 0;
  bool known = false;
  bool operator==(const Launch&) const = default;
};

Launch LaunchOf(const wire::ExchangeIdentity& identity) {
  return {identity.epoch(), identity.incarnation(), true};
}

PodIdentity FromProto(const wire::ExchangeIdentity& in) {
  return {in.job(),
          {in.pod(), in.rank()},
          in.epoch(),
          std::vector<std::string>(in.terms().begin(), in.terms().end())};
}

// `out` was a frame before: its bytes are written over, not made anew.
void ToProto(const PodFrame& frame, wire::StreamFrame& out) {
  out.clear_hello();
  out.set_number(frame.number);
  out.set_message(frame.message);
  out.set_offset(frame.offset);
  out.set_size(frame.size);
  out.set_data(frame.data.data(), frame.data.size());
  out.set_crc32c(FrameChecksum(frame));
  out.set_view(frame.words.view);
  out.set_kind(frame.words.kind);
  out.set_step(frame.words.step);
  out.set_fragment(frame.words.fragment);
  out.set_codec(frame.words.codec);
  out.set_weight(frame.words.weight);
}

// `data` is a view of `in`.
PodFrame FromProto(const wire::StreamFrame& in) {
  PodFrame frame;
  frame.number = in.number();
  frame.message = in.message();
  frame.offset = in.offset();
  frame.size = in.size();
  frame.data = in.data();
  frame.words.view = in.view();
  frame.words.kind = in.kind();
  frame.words.step = in.step();
  frame.words.fragment = in.fragment();
  frame.words.codec = in.codec();
  frame.words.weight = in.weight();
  return frame;
}

class Link;

// One flow that we dialled. Its fields are under the link's mutex, but for those that gRPC fills.
class Flow final : public grpc::ClientBidiReactor<wire::StreamFrame, wire::StreamAck> {
 public:
  Flow(Link* link, PodRank peer, int index) : link(link), peer(peer), index(index) {}

  void Begin(wire::Exchange::Stub& stub) {
    stub.async()->Stream(&context, this);
    AddHold();  // for writes from outside of the reactions
    StartRead(&in);
    StartWrite(&out);
    StartCall();
  }
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  Link* const link;
  const PodRank peer;
  const int index;
  grpc::ClientContext context;
  wire::StreamFrame out;
  wire::StreamAck in;
  const absl::Time dialled = absl::Now();
  bool up = false;      // the peer has said hello
  bool writing = true;  // hello first
  bool ended = false;   // no read will come: the hold goes with the last write
  bool holding = true;
  struct Delayed {
    absl::Time at;
    PodFrame frame;
  };
  std::deque<Delayed> delayed;  // on the throttled line
};

// One flow that dialled us.
class Arrival final : public grpc::ServerBidiReactor<wire::StreamFrame, wire::StreamAck> {
 public:
  explicit Arrival(Link* link)
      : link_(link),
        outbox_([this](const wire::StreamAck* ack) { this->StartWrite(ack); },
                [](wire::StreamAck& last, const wire::StreamAck& next) {
                  last.set_received(std::max(last.received(), next.received()));
                  last.set_taken(std::max(last.taken(), next.taken()));
                  return true;
                }) {}

  void Begin() { StartRead(&in_); }
  void Push(wire::StreamAck ack) { outbox_.Push(std::move(ack)); }
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnDone() override;

  // Under the link's mutex.
  PodRank from;
  Launch launch;  // known once it has said hello

 private:
  Link* const link_;
  wire::StreamFrame in_;
  Outbox<wire::StreamAck> outbox_;
};

struct Peer {
  Peer(int64_t queue_bytes, const ThrottleOptions& throttle, int flows)
      : out(queue_bytes), in(queue_bytes), flows(flows), came_up(flows, false) {
    if (throttle.on()) line.emplace(throttle, absl::Now());
  }

  std::string address;                                       // empty: nobody has said yet
  std::vector<std::shared_ptr<wire::Exchange::Stub>> stubs;  // by flow
  PodSendQueue out;
  std::optional<LinkThrottle> line;
  Launch takes;  // that receives from us
  PodReceiveQueue in;
  Launch sends;  // that sends to us
  std::vector<std::shared_ptr<Flow>> flows;
  std::vector<bool> came_up;  // once, by flow
  absl::Time next_dial = absl::InfinitePast();
  std::set<std::shared_ptr<Arrival>> arrivals;
  bool wanted = false;  // something was sent: it is dialled
  bool was_up = false;
  absl::Time heard = absl::InfinitePast();  // when it was up last
  absl::Status refused, trouble;            // for good; the last one of a flow

  bool up() const {
    if (!arrivals.empty()) return true;
    for (const auto& flow : flows) {
      if (flow != nullptr && flow->up) return true;
    }
    return false;
  }
};

class Service final : public wire::Exchange::CallbackService {
 public:
  explicit Service(Link* link) : link_(link) {}
  grpc::ServerUnaryReactor* Meet(grpc::CallbackServerContext* context,
                                 const wire::MeetRequest* request,
                                 wire::MeetResponse* response) override;
  grpc::ServerBidiReactor<wire::StreamFrame, wire::StreamAck>* Stream(
      grpc::CallbackServerContext*) override;

 private:
  Link* const link_;
};

class Link final : public GrpcPodLink {
 public:
  Link(PodIdentity identity, const GrpcPodLinkOptions& options)
      : identity_(std::move(identity)), options_(options), service_(this) {
    (void)getrandom(&incarnation_, sizeof(incarnation_), 0);
  }
  ~Link() override;
  absl::Status Listen();

  const PodIdentity& identity() const override { return identity_; }
  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override;
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override;
  absl::Time LastHeard(PodRank peer) const override;
  PodLinkCounters counters() const override {
    const std::lock_guard lock(mutex_);
    return counters_;
  }
  int port() const override { return port_; }
  void Publish(std::vector<std::string> addresses) override {
    const std::lock_guard lock(mutex_);
    addresses_ = std::move(addresses);
  }
  absl::StatusOr<std::vector<std::string>> Meet(int64_t pod, const std::string& address,
                                                absl::Time deadline) override;
  void AddPeer(PodRank peer, const std::string& address) override;
  void Cut(PodRank peer, absl::Duration pause) override;

  // --- what reactions tell ----------------------------------------------------------------------
  absl::Status Met(const wire::MeetRequest& request, wire::MeetResponse* response);
  std::shared_ptr<Arrival> NewArrival();
  absl::Status Arrived(Arrival* arrival, const wire::StreamFrame& frame);
  void Ended(Arrival* arrival);
  void Acknowledged(Flow* flow, const wire::StreamAck& ack);
  void Written(Flow* flow, bool ok);
  void ReadsEnded(Flow* flow);
  void Ended(Flow* flow, const grpc::Status& status);

 private:
  using Lock = std::unique_lock<std::mutex>;
  // What is to be done without the mutex: gRPC is not called under it.
  struct Work {
    std::vector<std::pair<std::shared_ptr<Flow>, std::shared_ptr<wire::Exchange::Stub>>> begin;
    std::vector<std::pair<std::shared_ptr<Flow>, PodFrame>> write;
    std::vector<std::shared_ptr<Flow>> cancel;
    std::vector<std::shared_ptr<Flow>> over;  // to be destroyed
    bool empty() const { return begin.empty() && write.empty() && cancel.empty() && over.empty(); }
  };

  wire::ExchangeIdentity Card() const;
  Peer& PeerOf(PodRank rank);
  absl::Status Compare(const PodIdentity& other);
  absl::Status Hello(Arrival* arrival, const wire::ExchangeIdentity& identity);
  void Refuse(PodRank peer, const absl::Status& why);
  void Lost(Peer& peer, absl::Time now);
  void Pump();
  absl::Time Plan(Peer& peer, PodRank rank, absl::Time now, Work* work);
  absl::Time PlanFrames(Peer& peer, absl::Time now, Work* work);
  void Do(Work work);
  bool Wait(Lock& lock, absl::Time deadline);

  const PodIdentity identity_;
  const GrpcPodLinkOptions options_;
  uint64_t incarnation_ = 0;
  Service service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // of all below, for callers
  std::condition_variable pump_;     // there may be something to send
  std::map<PodRank, Peer> peers_;
  struct Here {
    PodRank from;
    Launch launch;
    PodMessage message;
  };
  std::deque<Here> inbox_;  // whole, in order of arrival
  std::vector<std::string> addresses_;
  absl::Status refused_;  // for good: a peer's terms are other ones
  PodLinkCounters counters_;
  std::map<Arrival*, std::shared_ptr<Arrival>> arrivals_;  // alive in gRPC
  int flows_alive_ = 0;
  // Ended flows. A flow may hold the last of a channel, whose end waits for gRPC's threads where it
  // is the last of the process: none of those may destroy it.
  std::vector<std::shared_ptr<Flow>> over_;
  bool stopping_ = false;
  std::thread thread_;
};

// --- reactions
// ------------------------------------------------------------------------------------

void Flow::OnReadDone(bool ok) {
  if (!ok) return link->ReadsEnded(this);
  link->Acknowledged(this, in);
  StartRead(&in);
}
void Flow::OnWriteDone(bool ok) { link->Written(this, ok); }
void Flow::OnDone(const grpc::Status& status) { link->Ended(this, status); }

void Arrival::OnReadDone(bool ok) {
  if (!ok) return outbox_.Close([this] { this->Finish(grpc::Status::OK); }, /*discard=*/true);
  const absl::Status taken = link_->Arrived(this, in_);
  if (!taken.ok()) {
    return outbox_.Close([this, taken] { this->Finish(ToGrpc(taken)); }, /*discard=*/true);
  }
  StartRead(&in_);
}
void Arrival::OnDone() { link_->Ended(this); }

grpc::ServerUnaryReactor* Service::Meet(grpc::CallbackServerContext* context,
                                        const wire::MeetRequest* request,
                                        wire::MeetResponse* response) {
  return Answer(context, *request, [&] { return ToGrpc(link_->Met(*request, response)); });
}
grpc::ServerBidiReactor<wire::StreamFrame, wire::StreamAck>* Service::Stream(
    grpc::CallbackServerContext*) {
  const std::shared_ptr<Arrival> arrival = link_->NewArrival();
  arrival->Begin();
  return arrival.get();
}

// --- beginning and end
// ----------------------------------------------------------------------------

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
        if (refused_.ok() && peer.up() && !peer.address.empty() && !peer.out.received_all()) {
          return false;
        }
      }
      return true;
    };
    while (!delivered() && Wait(lock, limit)) {
    }
    stopping_ = true;
    for (const auto& [rank, peer] : peers_) {
      for (const auto& flow : peer.flows) {
        if (flow != nullptr) flows.push_back(flow);
      }
    }
    pump_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  for (const auto& flow : flows) flow->context.TryCancel();
  if (server_ != nullptr) {
    server_->Shutdown(absl::ToChronoTime(absl::Now()));
    server_->Wait();
  }
  Lock lock(mutex_);
  changed_.wait(lock, [this] { return flows_alive_ == 0 && arrivals_.empty(); });
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
  std::vector<std::shared_ptr<wire::Exchange::Stub>> stubs;
  for (int i = 0; i < options_.flows; ++i) {  // each its own connection
    stubs.push_back(wire::Exchange::NewStub(grpc::CreateCustomChannel(
        address, DialCredentials(options_.tls), ClientChannelArguments())));
  }
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(rank);
    if (!peer.address.empty()) peer.out.LineLost();
    peer.address = address;
    peer.stubs = std::move(stubs);
    pump_.notify_all();
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
  while (true) {
    TOROID_RETURN_IF_ERROR(peer.refused);
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

absl::Time Link::LastHeard(PodRank rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(rank);
  if (found == peers_.end()) return absl::InfinitePast();
  return found->second.up() ? absl::Now() : found->second.heard;
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

// --- terms
// ----------------------------------------------------------------------------------------

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
    if (met.code() != absl::StatusCode::kUnavailable &&
        met.code() != absl::StatusCode::kDeadlineExceeded) {
      return met;
    }
    TOROID_RETURN_IF_ERROR(WhyNoConnection(address, options_.tls));
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

// --- what comes
// -----------------------------------------------------------------------------------

std::shared_ptr<Arrival> Link::NewArrival() {
  const auto arrival = std::make_shared<Arrival>(this);
  const std::lock_guard lock(mutex_);
  arrivals_[arrival.get()] = arrival;
  return arrival;
}

absl::Status Link::Hello(Arrival* arrival, const wire::ExchangeIdentity& card) {
  const PodIdentity other = FromProto(card);
  TOROID_RETURN_IF_ERROR(Compare(other));
  Peer& peer = PeerOf(other.self);
  const Launch launch = LaunchOf(card);
  if (peer.sends.known && !(peer.sends == launch)) {
    if (launch.epoch <= peer.sends.epoch) {
      return absl::FailedPreconditionError(absl::StrCat(
          ToString(other.self), " comes with epoch ", launch.epoch,
          ", a launch before it had epoch ", peer.sends.epoch, ": each launch needs a higher one"));
    }
    const auto stale = [&](const Here& here) { return here.from == other.self; };
    counters_.stale_dropped += std::count_if(inbox_.begin(), inbox_.end(), stale);
    inbox_.erase(std::remove_if(inbox_.begin(), inbox_.end(), stale), inbox_.end());
    peer.in = PodReceiveQueue(options_.queue_bytes);
    if (peer.takes.known && !(peer.takes == launch)) peer.out.LineLost();
  }
  peer.sends = launch;
  arrival->from = other.self;
  arrival->launch = launch;
  peer.arrivals.insert(arrivals_.at(arrival));
  peer.was_up = true;
  return absl::OkStatus();
}

absl::Status Link::Arrived(Arrival* arrival, const wire::StreamFrame& in) {
  const bool hello = in.has_hello();
  const PodFrame frame = FromProto(in);
  if (!hello && FrameChecksum(frame) != in.crc32c()) {
    return absl::DataLossError(absl::StrCat("wrong checksum: frame ", frame.number));
  }
  wire::StreamAck ack;
  {
    const std::lock_guard lock(mutex_);
    if (hello == arrival->launch.known) {
      return absl::InvalidArgumentError("broken stream: hello comes first, and once");
    }
    if (hello) {
      TOROID_RETURN_IF_ERROR(Hello(arrival, in.hello()));
      *ack.mutable_hello() = Card();
    }
    Peer& peer = PeerOf(arrival->from);
    if (!(arrival->launch == peer.sends)) {
      if (frame.offset == 0) ++counters_.stale_dropped;
      return absl::FailedPreconditionError(
          absl::StrCat("a later launch of ", ToString(arrival->from), " is there"));
    }
    if (!hello) {
      TOROID_ASSIGN_OR_RETURN(const bool fresh, peer.in.Take(frame));
      (void)fresh;
      while (std::optional<PodMessage> message = peer.in.PopWhole()) {
        message->from = arrival->from;
        message->epoch = arrival->launch.epoch;
        inbox_.push_back({arrival->from, arrival->launch, *std::move(message)});
      }
    }
    ack.set_received(peer.in.received());
    ack.set_taken(peer.in.taken());
    arrival->Push(std::move(ack));
    changed_.notify_all();
  }
  return absl::OkStatus();
}

void Link::Ended(Arrival* arrival) {
  std::shared_ptr<Arrival> last;  // destroyed without the mutex
  const std::lock_guard lock(mutex_);
  last = arrivals_.at(arrival);
  arrivals_.erase(arrival);
  if (arrival->launch.known) {
    Peer& peer = PeerOf(arrival->from);
    peer.arrivals.erase(last);
    Lost(peer, absl::Now());
  }
  changed_.notify_all();
}

// --- what goes
// ------------------------------------------------------------------------------------

void Link::Lost(Peer& peer, absl::Time now) {
  if (peer.up() || !peer.was_up) return;
  peer.was_up = false;
  peer.heard = now;
  peer.out.LineLost();
}

void Link::Acknowledged(Flow* flow, const wire::StreamAck& ack) {
  bool cancel = false;
  {
    const std::lock_guard lock(mutex_);
    Peer& peer = PeerOf(flow->peer);
    if (ack.has_hello()) {
      const PodIdentity other = FromProto(ack.hello());
      const Launch launch = LaunchOf(ack.hello());
      const bool newer = peer.takes.known && !(launch == peer.takes);
      if (other.self != flow->peer) {
        Refuse(flow->peer, absl::FailedPreconditionError(
                               absl::StrCat(ToString(other.self), " listens at ", peer.address,
                                            ", not ", ToString(flow->peer))));
      } else if ((newer && launch.epoch <= peer.takes.epoch) || launch.epoch < peer.sends.epoch) {
        cancel = true;  // an earlier launch still listens
      } else {
        if (newer) {
          peer.out.Restart();
          for (const auto& other_flow : peer.flows) {
            if (other_flow != nullptr && other_flow.get() != flow) other_flow->up = false;
          }
        }
        if (!newer) peer.out.LineFound();
        peer.takes = launch;
        flow->up = peer.was_up = true;
        if (peer.came_up[flow->index]) ++counters_.reconnects;
        peer.came_up[flow->index] = true;
      }
    }
    if (flow->up && !peer.out.Acknowledged(ack.received(), ack.taken())) {
      Refuse(flow->peer, absl::DataLossError(absl::StrCat(ToString(flow->peer),
                                                          " acknowledges what was never sent")));
    }
    changed_.notify_all();
    pump_.notify_all();
  }
  if (cancel) flow->context.TryCancel();
}

void Link::Written(Flow* flow, bool) {
  bool release = false;
  Work work;
  {
    const std::lock_guard lock(mutex_);
    flow->writing = false;
    release = flow->ended && std::exchange(flow->holding, false);
    Peer& peer = PeerOf(flow->peer);
    if (peer.line.has_value()) {
      pump_.notify_all();
    } else if (peer.refused.ok() && !stopping_) {
      (void)PlanFrames(peer, absl::Now(), &work);  // here and now: no other thread has to wake
    }
  }
  if (release) flow->RemoveHold();
  if (!work.empty()) Do(std::move(work));
}

void Link::ReadsEnded(Flow* flow) {
  bool release = false;
  {
    const std::lock_guard lock(mutex_);
    flow->ended = true;
    flow->up = false;
    release = !flow->writing && std::exchange(flow->holding, false);
  }
  if (release) flow->RemoveHold();
}

void Link::Ended(Flow* flow, const grpc::Status& status) {
  const std::lock_guard lock(mutex_);
  Peer& peer = PeerOf(flow->peer);
  over_.push_back(std::move(peer.flows[flow->index]));
  peer.flows[flow->index] = nullptr;
  peer.out.FlowCut(flow->index);
  peer.trouble = FromGrpc(status);
  if (peer.trouble.code() == absl::StatusCode::kFailedPrecondition) {
    Refuse(flow->peer, peer.trouble);
  }
  Lost(peer, absl::Now());
  peer.next_dial = std::max(peer.next_dial, absl::Now() + kRedial);
  --flows_alive_;
  changed_.notify_all();
  pump_.notify_all();
}

// When something is to be done for this peer again.
absl::Time Link::Plan(Peer& peer, PodRank rank, absl::Time now, Work* work) {
  absl::Time next = absl::InfiniteFuture();
  if (!peer.wanted || !peer.refused.ok()) return next;
  if (peer.line.has_value()) {
    if (peer.line->Cut(now)) {
      for (const auto& flow : peer.flows) {
        if (flow != nullptr) work->cancel.push_back(flow);
      }
    }
    next = peer.line->next_cut();
  }
  for (size_t i = 0; i < peer.flows.size(); ++i) {
    std::shared_ptr<Flow>& flow = peer.flows[i];
    if (flow != nullptr) {
      if (flow->up || flow->ended) continue;
      if (now >= flow->dialled + kHelloLimit) work->cancel.push_back(flow);
      next = std::min(next, flow->dialled + kHelloLimit);
    } else if (now >= peer.next_dial) {
      flow = std::make_shared<Flow>(this, rank, static_cast<int>(i));
      *flow->out.mutable_hello() = Card();
      ++flows_alive_;
      work->begin.emplace_back(flow, peer.stubs[i]);
    } else {
      next = std::min(next, peer.next_dial);
    }
  }
  return std::min(next, PlanFrames(peer, now, work));
}

absl::Time Link::PlanFrames(Peer& peer, absl::Time now, Work* work) {
  absl::Time next = absl::InfiniteFuture();
  for (const std::shared_ptr<Flow>& flow : peer.flows) {
    if (flow == nullptr || !flow->up) continue;
    const bool free = peer.line.has_value() ? peer.line->free_at() <= now : !flow->writing;
    if (free && peer.out.HasFrame()) {
      PodFrame frame = peer.out.Next(flow->index);
      const int64_t bytes = static_cast<int64_t>(frame.data.size());
      const absl::Time at = peer.line.has_value() ? peer.line->Send(bytes, now) : now;
      flow->delayed.push_back({at, std::move(frame)});
    }
    if (!flow->delayed.empty() && !flow->writing) {
      if (flow->delayed.front().at <= now) {
        flow->writing = true;
        work->write.emplace_back(flow, std::move(flow->delayed.front().frame));
        flow->delayed.pop_front();
      } else {
        next = std::min(next, flow->delayed.front().at);
      }
    }
  }
  if (peer.line.has_value() && peer.out.HasFrame()) {
    next = std::min(next, std::max(peer.line->free_at(), now + absl::Microseconds(50)));
  }
  return next;
}

void Link::Do(Work work) {
  for (const auto& [flow, stub] : work.begin) flow->Begin(*stub);
  int64_t bytes = 0;
  for (auto& [flow, frame] : work.write) {
    ToProto(frame, flow->out);
    bytes += static_cast<int64_t>(flow->out.ByteSizeLong());
  }
  {
    const std::lock_guard lock(mutex_);
    counters_.wire_sent += bytes;  // before another rank can have them
  }
  for (auto& [flow, frame] : work.write) flow->StartWrite(&flow->out);
  for (const auto& flow : work.cancel) flow->context.TryCancel();
}

void Link::Pump() {
  Lock lock(mutex_);
  while (!stopping_) {
    Work work;
    work.over.swap(over_);
    const absl::Time now = absl::Now();
    absl::Time next = absl::InfiniteFuture();
    for (auto& [rank, peer] : peers_) next = std::min(next, Plan(peer, rank, now, &work));
    if (!work.empty()) {
      lock.unlock();
      Do(std::move(work));
      lock.lock();
    } else if (next == absl::InfiniteFuture()) {
      pump_.wait(lock);
    } else {
      pump_.wait_until(lock, absl::ToChronoTime(next));
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcPodLink>> NewGrpcPodLink(PodIdentity identity,
                                                            const GrpcPodLinkOptions& options) {
  auto link = std::make_unique<Link>(std::move(identity), options);
  TOROID_RETURN_IF_ERROR(link->Listen());
  return std::unique_ptr<GrpcPodLink>(std::move(link));
}

}  // namespace toroid
