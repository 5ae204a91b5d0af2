// What a link takes of a stream that is not of a link's making, and what it makes of refusals.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

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
  explicit Stream(const GrpcPodLink& to, bool is_met = true,
                  const std::vector<std::string>& terms = {absl::StrCat("frame format: ",
                                                                        kPodFrameFormat),
                                                           "v: 1"})
      : stub_(wire::Exchange::NewStub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", to.port()),
                                                          grpc::InsecureChannelCredentials()))),
        stream_(stub_->Stream(&context_)) {
    wire::StreamFrame hello;
    hello.mutable_hello()->set_job("job");
    hello.mutable_hello()->set_epoch(2);
    hello.mutable_hello()->set_incarnation(77);
    for (const std::string& term : terms) hello.mutable_hello()->add_terms(term);
    EXPECT_TRUE(stream_->Write(hello));
    wire::StreamAck ack;
    const bool met = stream_->Read(&ack) && ack.has_hello();
    EXPECT_EQ(met, is_met);
    received_ = ack.received();
  }
  ~Stream() { context_.TryCancel(); }

  uint64_t received() const { return received_; }
  grpc::Status Finish() { return stream_->Finish(); }
  // OK: the frame was received. The message is of one frame, number and message are the same. Its
  // checksum is right, or that of what it was before the change.
  grpc::Status Send(uint64_t number, const std::function<void(PodFrame&)>& change,
                    bool checksum_before = false) {
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
    const uint32_t before = FrameChecksum(frame);
    change(frame);
    wire::StreamFrame sent;
    EXPECT_TRUE(
        sent.ParseFromString(absl::StrCat(FrameHead(frame), absl::string_view(message->payload))));
    if (checksum_before) sent.set_crc32c(before);
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

absl::StatusOr<std::unique_ptr<GrpcPodLink>> NewLink() {
  return NewGrpcPodLink({"job", {1, 0}, 1, {"v: 1"}}, {});
}
// The step of the next message, -1 if there is none.
int64_t Got(GrpcPodLink& link) {
  const auto message = link.Receive(absl::Now() + absl::Milliseconds(20));
  return message.ok() && message->has_value() ? (*message)->step : -1;
}
const auto kAsItIs = [](PodFrame&) {};

TEST(GrpcPodLinkStream, AFrameOfAnEarlierLaunchThanItsStreamIsRefused) {
  const auto link = NewLink();
  ASSERT_TRUE(link.ok()) << link.status();
  {
    Stream stream(**link);
    EXPECT_EQ(stream.received(), 0u);
    EXPECT_TRUE(stream.Send(1, kAsItIs).ok());
    EXPECT_EQ(Got(**link), 1);
  }
  {
    Stream resumed(**link);
    EXPECT_EQ(resumed.received(), 1u);  // the same launch goes on
    const grpc::Status refused = resumed.Send(2, [](PodFrame& frame) { frame.words.epoch = 1; });
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(refused.error_message(), HasSubstr("frame 2 is of epoch 1, its stream of 2"));
    EXPECT_EQ((*link)->counters().stale_dropped, 1);
    EXPECT_EQ(Got(**link), -1);
  }
  Stream resumed(**link);
  EXPECT_TRUE(resumed.Send(2, kAsItIs).ok());  // control
  EXPECT_EQ(Got(**link), 2);
}

// It would be refused however often it came: both sides are told so, once and for all, and what is
// refused is no sign of life.
TEST(GrpcPodLinkStream, AFrameThatIsNeverTakenEndsItAll) {
  struct Case {
    std::function<void(PodFrame&)> change;
    const char* said;
  };
  const std::vector<Case> cases = {
      {[](PodFrame& frame) { frame.words.epoch = 3; }, "frame 2 is of epoch 3, its stream of 2"},
      {[](PodFrame& frame) { frame.words.from.pod = 5; }, "frame 2 is of pod 5, its stream of 0"},
      {[](PodFrame& frame) { frame.job = "other"; }, "frame 2 is of job other, its stream of job"},
      {[](PodFrame& frame) { frame.offset = 3; }, "frame 2 of message 2: 7 bytes at 3 of 7"},
      {[](PodFrame& frame) { frame.message = 1; }, "its message was whole without it"},
  };
  for (const Case& each : cases) {
    const auto link = NewLink();
    ASSERT_TRUE(link.ok()) << link.status();
    Stream stream(**link);
    EXPECT_TRUE(stream.Send(1, kAsItIs).ok());
    EXPECT_EQ(Got(**link), 1);
    const absl::Time heard = (*link)->LastHeard(0);
    const grpc::Status refused = stream.Send(2, each.change);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << each.said;
    EXPECT_THAT(refused.error_message(), AllOf(HasSubstr("takes nothing more of pod 0 rank 0"),
                                               HasSubstr(each.said), HasSubstr("the same build")));
    EXPECT_EQ((*link)->LastHeard(0), heard) << each.said;
    const auto here = (*link)->Receive(absl::Now());
    EXPECT_EQ(here.status().code(), absl::StatusCode::kInvalidArgument) << each.said;
    EXPECT_EQ(here.status().message(), refused.error_message());
    Stream again(**link, /*is_met=*/false);  // the same launch, with a frame that would do
    EXPECT_EQ(again.Finish().error_message(), refused.error_message());
  }
}

TEST(GrpcPodLinkStream, ASpoiltFrameMayComeAgainButNotForEver) {
  const auto spoilt = [](PodFrame& frame) { frame.words.weight = 9; };
  for (const bool whole_at_last : {true, false}) {
    const auto link = NewLink();
    ASSERT_TRUE(link.ok()) << link.status();
    for (int i = 0; i < 2; ++i) {
      Stream stream(**link);
      const grpc::Status refused = stream.Send(1, spoilt, /*checksum_before=*/true);
      EXPECT_EQ(refused.error_code(), grpc::StatusCode::DATA_LOSS);
      EXPECT_THAT(refused.error_message(), HasSubstr("wrong checksum: frame 1"));
    }
    Stream stream(**link);
    if (whole_at_last) {
      EXPECT_TRUE(stream.Send(1, kAsItIs).ok());
      EXPECT_EQ(Got(**link), 1);
      // It has come further, and others may be spoilt as often.
      EXPECT_EQ(stream.Send(2, spoilt, true).error_code(), grpc::StatusCode::DATA_LOSS);
      continue;
    }
    const grpc::Status refused = stream.Send(1, spoilt, true);
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(refused.error_message(),
                HasSubstr("wrong checksum: frame 1, 3 times: test memory"));
    EXPECT_EQ((*link)->Receive(absl::Now()).status().message(), refused.error_message());
  }
}

TEST(GrpcPodLinkStream, AnotherFormatOfFramesIsRefusedAtHello) {
  const std::string ours = absl::StrCat("\"frame format: ", kPodFrameFormat, "\"");
  for (const std::string& theirs : {std::string("frame format: 999"), std::string()}) {
    const bool earlier = theirs.empty();  // a build that knew of none
    const auto link = NewLink();
    ASSERT_TRUE(link.ok()) << link.status();
    std::vector<std::string> terms = {"v: 1"};
    if (!earlier) terms.insert(terms.begin(), theirs);
    Stream stream(**link, /*is_met=*/false, terms);
    const grpc::Status refused = stream.Finish();
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    const std::string said = absl::StrCat("\"", earlier ? "frame format: none" : theirs, "\"");
    for (const std::string& told :
         {refused.error_message(), (*link)->Receive(absl::Now()).status().ToString()}) {
      EXPECT_THAT(told, AllOf(HasSubstr(ours), HasSubstr(said)));
    }
  }
}

// Pod 1 of the job as it might be: it meets whoever comes, and answers the first frame with
// `first`.
class Peer final : public wire::Exchange::Service {
 public:
  explicit Peer(grpc::Status first) : first_(std::move(first)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Peer() override { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  int frames() const { return frames_; }

  grpc::Status Stream(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<wire::StreamAck, wire::StreamFrame>* stream) override {
    wire::StreamFrame frame;
    wire::StreamAck ack;
    ack.mutable_hello()->set_job("job");
    ack.mutable_hello()->set_pod(1);
    ack.mutable_hello()->set_epoch(1);
    ack.mutable_hello()->set_incarnation(5);
    if (!stream->Read(&frame) || !stream->Write(ack)) return grpc::Status::OK;
    ack.clear_hello();
    while (stream->Read(&frame)) {
      if (!frame.alive() && frames_++ == 0) return first_;
      if (!frame.alive()) ack.set_received(frame.number());
      if (!frame.alive()) ack.set_taken(frame.message());
      (void)stream->Write(ack);
    }
    return grpc::Status::OK;
  }

 private:
  const grpc::Status first_;
  std::atomic<int> frames_{0};
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST(GrpcPodLinkStream, WhoseFrameIsNeverTakenSendsItOnce) {
  Peer peer(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "pod 1 rank 0 takes nothing more"));
  {
    const auto link = NewGrpcPodLink({"job", {0, 0}, 1, {"v: 1"}}, {});
    ASSERT_TRUE(link.ok()) << link.status();
    (*link)->AddPeer({1, 0}, peer.address());
    ASSERT_TRUE((*link)->Send({1, 0}, {}, absl::InfiniteFuture()).ok());
    const absl::Status told = (*link)->Receive(absl::Now() + absl::Seconds(30)).status();
    EXPECT_EQ(told.code(), absl::StatusCode::kInvalidArgument) << told;
    EXPECT_THAT(told.ToString(), HasSubstr("pod 1 rank 0 takes nothing more"));
    EXPECT_EQ((*link)->Send({1, 0}, {}, absl::InfiniteFuture()), told);
  }
  EXPECT_EQ(peer.frames(), 1);
}

TEST(GrpcPodLinkStream, WhoseFrameWasSpoiltSendsItAgain) {
  Peer peer(grpc::Status(grpc::StatusCode::DATA_LOSS, "wrong checksum: frame 1"));
  GrpcPodLinkOptions narrow;
  narrow.queue_bytes = 0;
  const auto link = NewGrpcPodLink({"job", {0, 0}, 1, {"v: 1"}}, narrow);
  ASSERT_TRUE(link.ok()) << link.status();
  (*link)->AddPeer({1, 0}, peer.address());
  ASSERT_TRUE((*link)->Send({1, 0}, {}, absl::InfiniteFuture()).ok());
  // There is room once it was taken.
  EXPECT_TRUE((*link)->Send({1, 0}, {}, absl::Now() + absl::Seconds(20)).ok());
  EXPECT_GE(peer.frames(), 2);
}

}  // namespace
}  // namespace toroid
