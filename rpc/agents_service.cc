// toroid.internal.v1.Agents and Workers: streams that our own processes dial out.
#include <atomic>
#include <mutex>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/grpc_status.h"
#include "rpc/grpc_stream.h"
#include "rpc/services.h"
#include "toroid/internal/v1/agent.grpc.pb.h"
#include "toroid/internal/v1/worker.grpc.pb.h"

namespace toroid {
namespace {

// A bidirectional stream whose first message opens a session with the controller.
template <typename In, typename Out>
class SessionStream : public grpc::ServerBidiReactor<In, Out> {
 public:
  explicit SessionStream(Controller* controller,
                         std::function<bool(Out&, const Out&)> merge = nullptr)
      : controller_(controller),
        outbox_([this](const Out* message) { this->StartWrite(message); }, std::move(merge)) {}

  void Start(std::shared_ptr<SessionStream> self) {
    self_ = std::move(self);
    this->StartRead(&in_);
  }
  void Push(Out message) { outbox_.Push(std::move(message)); }
  // Calls act(); what is pushed meanwhile leaves together.
  template <typename Act>
  void PushTogether(Act act) {
    outbox_.Hold();
    act();
    outbox_.Release();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    // What opens a session comes from anybody, and an agent has no more than words to say; a world
    // that has shown its credential may answer at length.
    absl::Status status;
    if (session_ == 0 || std::is_same_v<In, internal::v1::AgentMessage>) {
      status = CheckSize(in_, kMaxControlBytes);
    }
    if (status.ok() && session_ == 0) {
      const absl::StatusOr<uint64_t> session = Open(in_);
      status = session.status();
      if (session.ok()) session_ = *session;
    } else if (status.ok()) {
      Take(session_, in_);
    }
    if (!status.ok()) return End(status);
    this->StartRead(&in_);
  }
  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnCancel() override { End(absl::CancelledError("the stream was cut")); }
  void OnDone() override {
    if (session_ != 0) Closed(session_);
    self_.reset();
  }

 protected:
  virtual absl::StatusOr<uint64_t> Open(const In& first) = 0;
  virtual void Take(uint64_t session, const In& message) = 0;
  virtual void Closed(uint64_t session) = 0;

  Controller* const controller_;
  std::shared_ptr<SessionStream> self_;  // until OnDone

 private:
  void End(const absl::Status& status) {
    outbox_.Close([this, status] { this->Finish(ToGrpc(status)); }, /*discard=*/true);
  }

  Outbox<Out> outbox_;
  In in_;
  uint64_t session_ = 0;  // touched by the stream's reactions only, which are one at a time
};

using internal::v1::AgentMessage;
using internal::v1::ControllerMessage;
using internal::v1::WorkerMessage;
using internal::v1::WorldMessage;

class AgentStream final : public SessionStream<AgentMessage, ControllerMessage> {
 public:
  AgentStream(Controller* controller, absl::Duration lease)
      : SessionStream(controller), lease_(lease) {}

 protected:
  absl::StatusOr<uint64_t> Open(const AgentMessage& first) override {
    if (!first.has_register_()) return absl::InvalidArgumentError("the first message registers");
    const internal::v1::Register& in = first.register_();
    PodRegistration pod{in.pod(), in.host(), in.slots(), in.version(), in.incarnation(), {}};
    for (const auto& held : in.held()) {
      pod.running.push_back({FromProto(held.world()), held.credential()});
    }
    if (in.held().empty()) {
      for (const auto& running : in.running()) pod.running.push_back({FromProto(running), ""});
    }
    AgentLink link;
    link.launch = [self = self_, this](const LaunchOrder& order) {
      ControllerMessage message;
      internal::v1::Launch& launch = *message.mutable_launch();
      *launch.mutable_world() = ToProto(order.world);
      launch.set_ranks(order.ranks);
      launch.set_credential(order.credential);
      launch.set_model(order.model);
      Push(std::move(message));
    };
    link.stop = [self = self_, this](const WorldId& world, const std::string& reason) {
      ControllerMessage message;
      *message.mutable_stop()->mutable_world() = ToProto(world);
      message.mutable_stop()->set_reason(reason);
      Push(std::move(message));
    };
    TOROID_ASSIGN_OR_RETURN(const uint64_t session,
                            controller_->AgentConnected(pod, std::move(link)));
    ControllerMessage message;
    message.mutable_registered()->set_lease_ms(absl::ToInt64Milliseconds(lease_));
    message.mutable_registered()->set_view(controller_->view());
    Push(std::move(message));
    return session;
  }

  void Take(uint64_t session, const AgentMessage& message) override {
    switch (message.body_case()) {
      case AgentMessage::kHeartbeat: {
        controller_->AgentHeartbeat(session);
        ControllerMessage answer;
        answer.mutable_heartbeat_answer()->set_view(controller_->view());
        return Push(std::move(answer));
      }
      case AgentMessage::kLaunchRefused: {
        const auto& refused = message.launch_refused();
        return controller_->LaunchRefused(session, FromProto(refused.world()),
                                          FromProto(refused.status()));
      }
      case AgentMessage::kWorldEnded: {
        const auto& ended = message.world_ended();
        return controller_->WorldEnded(session, FromProto(ended.world()), FromProto(ended.exit()));
      }
      case AgentMessage::kLogLines: {
        std::vector<LogLine> lines;
        for (const auto& line : message.log_lines().lines()) lines.push_back(FromProto(line));
        return controller_->LogLines(session, FromProto(message.log_lines().world()), lines);
      }
      case AgentMessage::kRankEnded: {
        const auto& ended = message.rank_ended();
        return controller_->RankEnded(session, FromProto(ended.world()), ended.rank(),
                                      ended.host());
      }
      case AgentMessage::kRegister:
      case AgentMessage::kWorldStarted:
      case AgentMessage::BODY_NOT_SET:
        return;
    }
  }

  void Closed(uint64_t session) override { controller_->AgentGone(session); }

 private:
  const absl::Duration lease_;
};

class WorkerStream final : public SessionStream<WorkerMessage, WorldMessage> {
 public:
  explicit WorkerStream(Controller* controller)
      : SessionStream(controller, AddBehind<WorldMessage>) {}

 protected:
  absl::StatusOr<uint64_t> Open(const WorkerMessage& first) override {
    if (!first.has_attach()) return absl::InvalidArgumentError("the first message attaches");
    const internal::v1::Attach& in = first.attach();
    const WorldId world = FromProto(first.world());
    WorldLink link;
    link.run = [self = self_, this, world](const WorldProgram& program) {
      Push(ToProto(world, program));
    };
    link.cancel = [self = self_, this, world](uint64_t number, CancelHow how) {
      WorldMessage message;
      *message.mutable_world() = ToProto(world);
      message.set_number(number);
      message.mutable_cancel()->set_save(how == CancelHow::kSave);
      Push(std::move(message));
    };
    link.pods = [self = self_, this, world](const PodTable& table) {
      WorldMessage message;
      *message.mutable_world() = ToProto(world);
      *message.mutable_pods() = ToProto(table);
      Push(std::move(message));
    };
    TOROID_ASSIGN_OR_RETURN(const uint64_t session,
                            controller_->WorkerAttached({world, in.pod(), in.credential(),
                                                         in.host(), in.pid(), in.program()},
                                                        std::move(link)));
    WorldMessage attached;
    *attached.mutable_world() = ToProto(world);
    attached.mutable_attached();
    Push(std::move(attached));
    return session;
  }

  void Take(uint64_t session, const WorkerMessage& message) override {
    PushTogether([&] {
      TakeOne(session, message);
      for (const WorkerMessage& next : message.more()) TakeOne(session, next);
    });
  }

  void Closed(uint64_t session) override { controller_->WorkerGone(session); }

 private:
  void TakeOne(uint64_t session, const WorkerMessage& message) {
    const auto answer = FromProto(message);
    if (answer.ok()) controller_->WorkerAnswered(session, FromProto(message.world()), *answer);
  }
};

class AgentsService final : public internal::v1::Agents::CallbackService {
 public:
  AgentsService(Controller* controller, absl::Duration lease)
      : controller_(controller), lease_(lease) {}
  grpc::ServerBidiReactor<AgentMessage, ControllerMessage>* Connect(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<AgentStream>(controller_, lease_);
    stream->Start(stream);
    return stream.get();
  }

 private:
  Controller* const controller_;
  const absl::Duration lease_;
};

class WorkersService final : public internal::v1::Workers::CallbackService {
 public:
  explicit WorkersService(Controller* controller) : controller_(controller) {}
  grpc::ServerBidiReactor<WorkerMessage, WorldMessage>* Attach(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<WorkerStream>(controller_);
    stream->Start(stream);
    return stream.get();
  }

 private:
  Controller* const controller_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewAgentsService(Controller* controller, absl::Duration lease) {
  return std::make_unique<AgentsService>(controller, lease);
}

std::unique_ptr<grpc::Service> NewWorkersService(Controller* controller) {
  return std::make_unique<WorkersService>(controller);
}

}  // namespace toroid
