#include "rpc/agent_client.h"

#include <grpcpp/create_channel.h>

#include <mutex>
#include <utility>

#include "rpc/convert.h"
#include "rpc/dialled_stream.h"
#include "rpc/grpc_credentials.h"
#include "toroid/internal/v1/agent.grpc.pb.h"

namespace toroid {
namespace {

using internal::v1::AgentMessage;
using internal::v1::ControllerMessage;

constexpr size_t kLogBytes = kMaxControlBytes / 4;  // MendUtf8 may make three bytes of one

class GrpcAgentClient final : public AgentClient {
 public:
  GrpcAgentClient(const std::string& controller, const Tls& tls, std::function<void()> wake)
      : wake_(std::move(wake)),
        stub_(internal::v1::Agents::NewStub(
            grpc::CreateCustomChannel(controller, DialCredentials(tls), ClientChannelArguments()))),
        stream_([this](const ControllerMessage& message) { Receive(message); },
                [this](const absl::Status& status) { Add(StreamClosed{status}); }) {}

  void Start(const PodRegistration& registration) {
    stream_.Begin(stub_->PrepareAsyncConnect(stream_.context(), stream_.events()));
    AgentMessage message;
    internal::v1::Register& out = *message.mutable_register_();
    out.set_pod(registration.pod);
    out.set_host(registration.host);
    out.set_slots(registration.slots);
    out.set_version(registration.version);
    out.set_incarnation(registration.incarnation);
    for (const HeldWorld& world : registration.running) {
      *out.add_running() = ToProto(world.id);
      internal::v1::HeldWorld& held = *out.add_held();
      *held.mutable_world() = ToProto(world.id);
      held.set_credential(world.credential);
    }
    stream_.Push(std::move(message));
  }

  void Report(const AgentReport& report) override {
    AgentMessage message;
    if (const auto* refused = std::get_if<absl::Status>(&report.body)) {
      *message.mutable_launch_refused()->mutable_world() = ToProto(report.world);
      *message.mutable_launch_refused()->mutable_status() = ToProto(*refused);
    } else if (const auto* exit = std::get_if<WorldExit>(&report.body)) {
      *message.mutable_world_ended()->mutable_world() = ToProto(report.world);
      *message.mutable_world_ended()->mutable_exit() = ToProto(*exit);
    } else if (const auto* rank = std::get_if<RankEnding>(&report.body)) {
      *message.mutable_rank_ended()->mutable_world() = ToProto(report.world);
      message.mutable_rank_ended()->set_rank(rank->rank);
      message.mutable_rank_ended()->set_host(rank->host);
    } else {
      return Report(report.world, std::get<std::vector<LogLine>>(report.body));
    }
    stream_.Push(std::move(message));
  }

  void Heartbeat() override {
    AgentMessage message;
    message.mutable_heartbeat();
    stream_.Push(std::move(message));
  }

  std::vector<AgentOrder> Take() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(orders_, {});
  }

 private:
  // In messages that the controller takes, however much a world wrote.
  void Report(const WorldId& world, const std::vector<LogLine>& lines) {
    AgentMessage message;
    size_t bytes = 0;
    for (const LogLine& line : lines) {
      if (bytes > kLogBytes) {
        stream_.Push(std::exchange(message, AgentMessage()));
        bytes = 0;
      }
      *message.mutable_log_lines()->mutable_world() = ToProto(world);
      *message.mutable_log_lines()->add_lines() = ToProto(line);
      bytes += line.text.size() + 16;
    }
    if (bytes > 0) stream_.Push(std::move(message));
  }

  void Receive(const ControllerMessage& message) {
    switch (message.body_case()) {
      case ControllerMessage::kRegistered:
        return Add(LeaseOrder{absl::Milliseconds(message.registered().lease_ms()), true});
      case ControllerMessage::kHeartbeatAnswer:
        return Add(LeaseOrder{absl::ZeroDuration(), false});
      case ControllerMessage::kLaunch: {
        const internal::v1::Launch& launch = message.launch();
        return Add(LaunchOrder{FromProto(launch.world()), launch.ranks(), launch.credential(),
                               launch.model()});
      }
      case ControllerMessage::kStop:
        return Add(StopOrder{FromProto(message.stop().world())});
      case ControllerMessage::BODY_NOT_SET:
        return;
    }
  }

  void Add(AgentOrder order) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      orders_.push_back(std::move(order));
    }
    wake_();
  }

  const std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<AgentOrder> orders_;
  const std::unique_ptr<internal::v1::Agents::Stub> stub_;
  DialledStream<AgentMessage, ControllerMessage> stream_;  // last: its end waits for its reactions
};

}  // namespace

std::unique_ptr<AgentClient> DialController(const std::string& controller, const Tls& tls,
                                            const PodRegistration& registration,
                                            std::function<void()> wake) {
  auto client = std::make_unique<GrpcAgentClient>(controller, tls, std::move(wake));
  client->Start(registration);
  return client;
}

}  // namespace toroid
