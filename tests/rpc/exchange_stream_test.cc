// What a link takes of a stream that is not of a link's making: each frame must be of the launch
// that said hello.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/exchange_link.h"
#include "rpc/exchange_wire.h"
#include "toroid/internal/v1/exchange.grpc.pb.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
namespace wire = exchange::wire;

// Rank 0 of pod 0 of the job, launch 2; how its stream ends, if it does.
class Stream {
 public:
  explicit Stream(const GrpcPodLink& to)
      : stub_(wire::Exchange::NewStub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", to.port()),
                                                          grpc::InsecureChannelCredentials()))),
        stream_(stub_->Stream(&context_)) {
    wire::StreamFrame hello;
    hello.mutable_hello()->set_job("job");
    hello.mutable_hello()->set_epoch(2);
    hello.mutable_hello()->set_incarnation(77);
    hello.mutable_hello()->add_terms("v: 1");
    EXPECT_TRUE(stream_->Write(hello));
    wire::StreamAck ack;
    EXPECT_TRUE(stream_->Read(&ack) && ack.has_hello());
    received_ = ack.received();
  }
  ~Stream() { context_.TryCancel(); }

  uint64_t received() const { return received_; }
  // OK: the frame was received. The message is of one frame, number and message are the same.
  grpc::Status Send(uint64_t number, const std::function<void(PodFrame&)>& change) {
    const auto message = std::make_shared<PodMessage>();
    message->payload = "payload";
    PodFrame frame;
    frame.number = frame.message = number;
    frame.size = 7;
    frame.job = "job";
    frame.words.epoch = 2;
    frame.words.step = static_cast<int64_t>(number);
    frame.data = {message->payload};
    frame.owner = message;
    change(frame);
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(exchange::ToBytes(frame).Dump(&slices).ok());
    std::string text;
    for (const grpc::Slice& slice : slices) {
      text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    wire::StreamFrame sent;
    EXPECT_TRUE(sent.ParseFromString(text));
    EXPECT_TRUE(stream_->Write(sent));
    wire::StreamAck ack;
    while (stream_->Read(&ack)) {
      if (ack.received() >= number) return grpc::Status::OK;
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<wire::Exchange::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::StreamFrame, wire::StreamAck>> stream_;
  uint64_t received_ = 0;
};

TEST(GrpcPodLinkStream, AFrameOfAnotherLaunchThanItsStreamIsRefused) {
  const auto link = NewGrpcPodLink({"job", {1, 0}, 1, {"v: 1"}}, {});
  ASSERT_TRUE(link.ok()) << link.status();
  const auto got = [&] {
    const auto message = (*link)->Receive(absl::Now() + absl::Milliseconds(20));
    return message.ok() && message->has_value() ? (*message)->step : -1;
  };
  const auto as_it_is = [](PodFrame&) {};
  {
    Stream stream(**link);
    EXPECT_EQ(stream.received(), 0u);
    EXPECT_TRUE(stream.Send(1, as_it_is).ok());
    EXPECT_EQ(got(), 1);
  }
  struct Case {
    std::function<void(PodFrame&)> change;
    grpc::StatusCode code;
    const char* said;
    int64_t counted;
  };
  const std::vector<Case> cases = {
      {[](PodFrame& frame) { frame.words.epoch = 1; }, grpc::StatusCode::FAILED_PRECONDITION,
       "frame 2 is of epoch 1, its stream of 2", 1},
      {[](PodFrame& frame) { frame.words.epoch = 3; }, grpc::StatusCode::INVALID_ARGUMENT,
       "frame 2 is of epoch 3, its stream of 2", 0},
      {[](PodFrame& frame) { frame.words.from.pod = 5; }, grpc::StatusCode::INVALID_ARGUMENT,
       "frame 2 is of pod 5, its stream of 0", 0},
      {[](PodFrame& frame) { frame.job = "other"; }, grpc::StatusCode::INVALID_ARGUMENT,
       "frame 2 is of job other, its stream of job", 0},
  };
  for (const Case& each : cases) {
    const int64_t before = (*link)->counters().stale_dropped;
    Stream resumed(**link);
    EXPECT_EQ(resumed.received(), 1u);  // the same launch goes on
    const grpc::Status refused = resumed.Send(2, each.change);
    EXPECT_EQ(refused.error_code(), each.code) << each.said;
    EXPECT_THAT(refused.error_message(), HasSubstr(each.said));
    EXPECT_EQ((*link)->counters().stale_dropped - before, each.counted) << each.said;
    EXPECT_EQ(got(), -1) << each.said;
  }
  Stream resumed(**link);
  EXPECT_TRUE(resumed.Send(2, as_it_is).ok());  // control
  EXPECT_EQ(got(), 2);
}

}  // namespace
}  // namespace toroid
