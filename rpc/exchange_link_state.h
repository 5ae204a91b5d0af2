// What a GrpcPodLink remembers of its peers and of what is on its way. Included by exchange_*.cc
// only: exchange_link.cc begins, ends and serves callers, _meet.cc compares terms, _receive.cc
// takes what comes, _send.cc sends what goes.
#pragma once

#include <grpcpp/server.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/pod_stream.h"
#include "rpc/exchange_flows.h"
#include "rpc/exchange_link.h"
#include "rpc/link_throttle.h"

namespace toroid::exchange {

constexpr absl::Duration kRedial = absl::Milliseconds(100);

struct Peer {
  Peer(int64_t queue_bytes, const ThrottleOptions& throttle, int flows)
      : out(queue_bytes), in(queue_bytes), flows(flows + 1), came_up(flows + 1, false) {
    if (throttle.on()) line.emplace(throttle, absl::Now());
  }

  std::string address;                             // empty: nobody has said yet
  std::vector<std::shared_ptr<StreamStub>> stubs;  // by flow
  bool removed = false;                            // what is sent to it goes nowhere
  uint64_t added = 0;                              // times: what waits is of the last
  PodSendQueue out;
  std::optional<LinkThrottle> line;
  Launch takes;  // that receives from us
  PodReceiveQueue in;
  Launch sends;          // that sends to us
  int spoilt = 0;        // frames of it since `in` came further
  absl::Status forbids;  // once it has sent what is never taken: what it is told from then on
  // The last one has signs of life alone, which no frame holds up: each is acknowledged.
  std::vector<std::shared_ptr<Flow>> flows;
  std::vector<bool> came_up;  // once, by flow, to the launch that receives
  absl::Time next_sign = absl::InfinitePast();
  absl::Time next_dial = absl::InfinitePast();
  std::set<std::shared_ptr<Arrival>> arrivals;
  bool wanted = false;   // something was sent: it is dialled
  bool reached = false;  // at this address, by us
  int doubts = 0;        // probes in a row that TLS did not pass
  absl::Time next_probe = absl::InfinitePast();
  bool was_up = false;
  absl::Time heard = absl::InfinitePast();  // anything at all
  absl::Status refused, trouble;            // for good; the last one of a flow

  bool up() const {
    if (!arrivals.empty()) return true;
    for (const auto& flow : flows) {
      if (flow != nullptr && flow->up) return true;
    }
    return false;
  }
};

class Link final : public GrpcPodLink {
 public:
  Link(PodIdentity identity, const GrpcPodLinkOptions& options);
  ~Link() override;
  absl::Status Listen();

  const PodIdentity& identity() const override { return identity_; }
  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override;
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override;
  absl::Time LastHeard(int64_t pod) const override;
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
  void RemovePeer(PodRank peer) override;
  void Cut(PodRank peer, absl::Duration pause) override;

  // --- what reactions tell ----------------------------------------------------------------------
  absl::Status Met(const wire::MeetRequest& request, wire::MeetResponse* response);
  void Answers(int more);  // to Meet, on their way
  std::shared_ptr<Arrival> NewArrival();
  absl::Status Arrived(Arrival* arrival, grpc::ByteBuffer& bytes);
  void Ended(Arrival* arrival);
  void Acknowledged(Flow* flow, const wire::StreamAck& ack);
  void Written(Flow* flow, bool ok);
  void ReadsEnded(Flow* flow);
  void Ended(Flow* flow, const grpc::Status& status);

 private:
  using Lock = std::unique_lock<std::mutex>;
  // What is to be done without the mutex: gRPC is not called under it.
  struct Work {
    std::vector<std::pair<std::shared_ptr<Flow>, std::shared_ptr<StreamStub>>> begin;
    std::vector<std::pair<std::shared_ptr<Flow>, PodFrame>> write;
    std::vector<std::shared_ptr<Flow>> signs;
    std::vector<std::shared_ptr<Flow>> cancel;
    std::vector<std::shared_ptr<Flow>> over;  // to be destroyed
    bool empty() const {
      return begin.empty() && write.empty() && signs.empty() && cancel.empty() && over.empty();
    }
  };

  wire::ExchangeIdentity Card() const;
  Peer& PeerOf(PodRank rank);
  absl::Status Compare(const PodIdentity& other);
  absl::Status Hello(Arrival* arrival, const wire::ExchangeIdentity& identity);
  absl::Status OfItsStream(const Arrival& arrival, const PodFrame& frame);
  absl::Status Take(Arrival* arrival, const ReceivedFrame& received);
  absl::Status TakeFrame(const Arrival& arrival, Peer& peer, const PodFrame& frame);
  absl::Status NotTaken(Arrival* arrival, const absl::Status& why);
  void Refuse(PodRank peer, const absl::Status& why);
  void Doubt(Peer& peer, PodRank rank);
  void Probe();
  bool AllAreAnswered() const;
  void Lost(Peer& peer);
  void Forget(Peer& peer);
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
  int flows_alive_ = 0, answers_alive_ = 0;
  // Ended flows. A flow may hold the last of a channel, whose end waits for gRPC's threads where it
  // is the last of the process: none of those may destroy it.
  std::vector<std::shared_ptr<Flow>> over_;
  std::set<PodRank> doubted_;  // why are they not reached?
  std::condition_variable probe_;
  bool stopping_ = false;
  std::thread thread_;
  std::thread prober_;  // from the first doubt on: a probe waits for its answer
};

}  // namespace toroid::exchange
