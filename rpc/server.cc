#include "rpc/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/stat.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/controller.h"
#include "rpc/convert.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"
#include "rpc/services.h"

namespace toroid {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr const char* kServices[] = {"", "toroid.v1.Jobs", "toroid.v1.Pods", "toroid.v1.Inference"};

absl::Status MakeDirectory(const std::string& path) {
  std::string prefix;
  for (size_t end = 0; end != std::string::npos;) {
    end = path.find('/', end + 1);
    prefix = path.substr(0, end);
    if (mkdir(prefix.c_str(), 0700) != 0 && errno != EEXIST) {
      return absl::PermissionDeniedError(
          absl::StrCat("state directory cannot be made: ", prefix, ": ", strerror(errno)));
    }
  }
  return absl::OkStatus();
}

class Server final : public ControllerServer {
 public:
  ~Server() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Start(const ControllerOptions& options) {
    TOROID_RETURN_IF_ERROR(CheckListenAddress(options.listen, options.tls));
    TOROID_RETURN_IF_ERROR(MakeDirectory(options.state_dir));
    TOROID_RETURN_IF_ERROR(MakeDirectory(options.state_dir + "/logs"));
    TOROID_ASSIGN_OR_RETURN(store_, JobStore::Open(options.state_dir + "/jobs.sqlite"));
    logs_ = std::make_unique<LogStore>(options.state_dir + "/logs");
    ControllerTimes times;
    times.lease = options.lease;
    controller_ = std::make_unique<Controller>(store_.get(), logs_.get(), ProtoJobCodec(), times,
                                               [] { return absl::Now(); });
    services_.push_back(NewJobsService(controller_.get(), logs_.get()));
    services_.push_back(NewPodsService(controller_.get()));
    services_.push_back(NewInferenceService(controller_.get()));
    services_.push_back(NewAgentsService(controller_.get(), options.lease));
    services_.push_back(NewWorkersService(controller_.get()));
    TOROID_RETURN_IF_ERROR(Listen(options));
    ticker_ = std::thread([this] { TickUntilStopped(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  std::string address() const override { return absl::StrCat(host_, ":", port_); }

  void Shutdown(absl::Duration grace) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      stopping_ = true;
    }
    changed_.notify_all();
    if (server_ != nullptr) {
      if (auto* health = server_->GetHealthCheckService()) health->SetServingStatus(false);
      server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
      server_->Wait();
    }
    if (ticker_.joinable()) ticker_.join();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
  }

  void Wait() override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stopped_; });
  }

 private:
  absl::Status Listen(const ControllerOptions& options) {
    QuietGrpc();
    grpc::EnableDefaultHealthCheckService(true);
    if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::channelz::experimental::InitChannelzService();
    grpc::ServerBuilder builder;
    host_ = options.listen.substr(0, options.listen.rfind(':'));
    builder.AddListeningPort(options.listen, ListenCredentials(options.tls), &port_);
    SetServerLimits(&builder);
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      server_.reset();
      return CannotListen(options.listen, "give --listen another address");
    }
    if (auto* health = server_->GetHealthCheckService()) {
      for (const char* name : kServices) health->SetServingStatus(name, true);
    }
    return absl::OkStatus();
  }

  void TickUntilStopped() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      lock.unlock();
      controller_->Tick();
      lock.lock();
      changed_.wait_for(lock, absl::ToChronoMilliseconds(kTick), [this] { return stopping_; });
    }
  }

  std::unique_ptr<JobStore> store_;
  std::unique_ptr<LogStore> logs_;
  std::unique_ptr<Controller> controller_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  std::string host_;
  int port_ = 0;
  std::thread ticker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false, stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControllerServer>> StartController(
    const ControllerOptions& options) {
  auto server = std::make_unique<Server>();
  TOROID_RETURN_IF_ERROR(server->Start(options));
  return std::unique_ptr<ControllerServer>(std::move(server));
}

}  // namespace toroid
