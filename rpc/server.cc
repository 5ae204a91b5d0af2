#include "rpc/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/controller.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
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

absl::Status CheckAddress(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(listen.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("unreadable address: '", listen, "': write 127.0.0.1:7070"));
  }
  if (!IsLoopback(listen)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address is not loopback: ", listen,
        ": this version speaks plaintext, hence on this machine only: use 127.0.0.1 and a tunnel"));
  }
  return absl::OkStatus();
}

// Why nothing can listen there: gRPC does not tell. Empty if something can by now.
std::string WhyNoPort(std::string host, const std::string& port) {
  if (host.size() > 2 && host[0] == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  const int code = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) return gai_strerror(code);
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  const bool bound = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0;
  const std::string why = bound ? "" : strerror(errno);
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return why;
}

class Server final : public ControllerServer {
 public:
  ~Server() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Start(const ControllerOptions& options) {
    TOROID_RETURN_IF_ERROR(CheckAddress(options.listen));
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
    builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
    builder.SetMaxSendMessageSize(kMaxReceiveBytes);
    for (const auto& [name, value] :
         {std::pair(GRPC_ARG_ALLOW_REUSEPORT, 0),
          std::pair(GRPC_ARG_KEEPALIVE_TIME_MS, kPingAfterMs),
          std::pair(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingAnswerMs),
          std::pair(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
          std::pair(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
          std::pair(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
          std::pair(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10),
          std::pair(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100),
          std::pair(GRPC_ARG_ENABLE_CHANNELZ, 1)}) {
      builder.AddChannelArgument(name, value);
    }
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      server_.reset();
      const std::string why =
          WhyNoPort(host_, options.listen.substr(options.listen.rfind(':') + 1));
      return MakeError(
          absl::StatusCode::kFailedPrecondition,
          absl::StrCat("cannot listen: ", options.listen, ": ",
                       why.empty() ? "it was refused" : why, ": give --listen another address"),
          {"CANNOT_LISTEN", {{"address", options.listen}}, {}});
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
