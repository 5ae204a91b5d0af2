// The streams between two ranks as gRPC drives them: each reaction tells the link, under whose
// mutex all that follows is decided. Included by exchange_*.cc only.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/client_callback.h>
#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "rpc/exchange_wire.h"
#include "rpc/grpc_stream.h"
#include "toroid/internal/v1/exchange.grpc.pb.h"

namespace toroid::exchange {

class Link;

// Calls Exchange.Stream with frames as bytes (exchange_wire.h).
using StreamStub = grpc::TemplatedGenericStub<grpc::ByteBuffer, wire::StreamAck>;

// One flow that we dialled. Its fields are under the link's mutex, but for those that gRPC fills.
class Flow final : public grpc::ClientBidiReactor<grpc::ByteBuffer, wire::StreamAck> {
 public:
  Flow(Link* link, PodRank peer, int index) : link(link), peer(peer), index(index) {}

  void Begin(StreamStub& stub);
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  Link* const link;
  const PodRank peer;
  const int index;
  grpc::ClientContext context;
  grpc::ByteBuffer out;
  wire::StreamAck in;
  const absl::Time dialled = absl::Now();
  bool up = false;      // the peer has said hello
  bool writing = true;  // hello first
  bool ended = false;   // no read will come: the hold goes with the last write
  bool holding = true;
  bool abandoned = false;  // to a launch that is no more
  struct Delayed {
    absl::Time at;
    PodFrame frame;
  };
  std::deque<Delayed> delayed;  // on the throttled line
};

// One flow that dialled us.
class Arrival final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Arrival(Link* link)
      : link_(link),
        outbox_(
            [this](const wire::StreamAck* ack) {
              out_ = ToBytes(*ack);
              this->StartWrite(&out_);
            },
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
  Launch launch;         // known once it has said hello
  bool refused = false;  // is told why, and ends

 private:
  Link* const link_;
  grpc::ByteBuffer in_, out_;
  Outbox<wire::StreamAck> outbox_;
};

// The answer to Exchange.Meet. The link does not end before it has left.
class MeetAnswer final : public grpc::ServerUnaryReactor {
 public:
  explicit MeetAnswer(Link* link);
  void OnDone() override;

 private:
  Link* const link_;
};

class Service final : public wire::Exchange::WithRawCallbackMethod_Stream<
                          wire::Exchange::WithCallbackMethod_Meet<wire::Exchange::Service>> {
 public:
  explicit Service(Link* link) : link_(link) {}
  grpc::ServerUnaryReactor* Meet(grpc::CallbackServerContext* context,
                                 const wire::MeetRequest* request,
                                 wire::MeetResponse* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Stream(
      grpc::CallbackServerContext*) override;

 private:
  Link* const link_;
};

}  // namespace toroid::exchange
