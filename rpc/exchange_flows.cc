#include "rpc/exchange_flows.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "rpc/exchange_link_state.h"
#include "rpc/grpc_status.h"

namespace toroid::exchange {

void Flow::Begin(StreamStub& stub) {
  static const std::string method =
      absl::StrCat("/", wire::Exchange::service_full_name(), "/Stream");
  stub.PrepareBidiStreamingCall(&context, method, {}, this);
  AddHold();  // for writes from outside of the reactions
  StartRead(&in);
  StartWrite(&out);
  StartCall();
}
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

MeetAnswer::MeetAnswer(Link* link) : link_(link) { link_->Answers(1); }
void MeetAnswer::OnDone() {
  Link* const link = link_;
  delete this;
  link->Answers(-1);
}

grpc::ServerUnaryReactor* Service::Meet(grpc::CallbackServerContext*,
                                        const wire::MeetRequest* request,
                                        wire::MeetResponse* response) {
  auto* const answer = new MeetAnswer(link_);  // before what it says can end the link
  const absl::Status size = CheckSize(*request, kMaxControlBytes);
  answer->Finish(ToGrpc(size.ok() ? link_->Met(*request, response) : size));
  return answer;
}
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Service::Stream(
    grpc::CallbackServerContext*) {
  const std::shared_ptr<Arrival> arrival = link_->NewArrival();
  arrival->Begin();
  return arrival.get();
}

}  // namespace toroid::exchange
