// What all services share: who is refused, sizes, addresses, health; and a client that nobody
// answers.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "rpc/error_info.h"
#include "tests/rpc/services_fixture.h"

namespace toroid {

std::pair<grpc::Status, std::string> ServicesTest::Call(const std::string& method,
                                                        const std::string& bytes) {
  grpc::GenericStub stub(
      grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kLimit);
  grpc::Slice slice(bytes);
  grpc::ByteBuffer request(&slice, 1), response;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  grpc::Status status;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response, [&](grpc::Status s) {
    const std::lock_guard<std::mutex> lock(mutex);
    status = std::move(s);
    done = true;
    changed.notify_all();
  });
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return done; });
  grpc::Slice out;
  (void)response.DumpToSingleSlice(&out);
  return {status, std::string(out.begin(), out.end())};
}

namespace {

using ::testing::HasSubstr;

TEST_F(ServicesTest, AWorkerWithoutTheCredentialIsRefused) {
  WorkerOptions options;
  options.controller = server_->address();
  options.job = "kept.a";
  options.epoch = 1;
  options.pod = "a";
  options.credential = "guess";
  EXPECT_EQ(ConnectWorker(options).status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(ServicesTest, OversizedMessagesAreRefused) {
  JobSpec spec = Job();
  std::get<GenerateTask>(spec.task).prompt.text = std::string(2 << 20, 'x');
  const auto job = client_->SubmitJob(spec, "");
  EXPECT_EQ(job.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorInfo(job.status()).reason, "MESSAGE_TOO_LARGE");
  EXPECT_THAT(job.status().ToString(), HasSubstr("1048576"));
  EXPECT_TRUE(client_->SubmitJob(Job(), "").ok());
  std::get<GenerateTask>(spec.task).prompt.text = std::string(17 << 20, 'x');
  const auto huge = client_->SubmitJob(spec, "");  // the client sees that by itself
  EXPECT_EQ(GetErrorInfo(huge.status()).metadata.at("limit"), "16777216");
}

// Whatever is in a message: a field that nobody knows counts too. A method that is added to these
// services is looked at without being named here.
TEST_F(ServicesTest, EveryControlMethodRefusesWhatIsTooLarge) {
  const std::string padding(1 << 20, 'x');
  // Field 1000, length-delimited, of 2^20 bytes.
  const std::string large = std::string("\xc2\x3e\x80\x80\x40", 5) + padding;
  const std::string fits = std::string("\xc2\x3e\x80\x80\x20", 5) + padding.substr(1 << 19);
  std::vector<std::string> methods = {
      "/toroid.v1.Inference/GetModel", "/toroid.v1.Inference/ListModels",
      "/toroid.internal.v1.Agents/Connect", "/toroid.internal.v1.Workers/Attach"};
  for (const char* name : {"toroid.v1.Jobs", "toroid.v1.Pods"}) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    ASSERT_NE(service, nullptr);
    for (int i = 0; i < service->method_count(); ++i) {
      methods.push_back(absl::StrCat("/", name, "/", service->method(i)->name()));
    }
  }
  ASSERT_GE(methods.size(), 14u);
  for (const std::string& method : methods) {
    const grpc::Status refused = Call(method, large).first;
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << method;
    EXPECT_THAT(refused.error_message(), HasSubstr("1048581 bytes")) << method;
    EXPECT_THAT(refused.error_message(), HasSubstr("at most 1048576")) << method;
    EXPECT_NE(Call(method, fits).first.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << method;  // negative control
  }
}

TEST_F(ServicesTest, AddressesThatCannotBeListenedOn) {
  ControllerOptions second = options_;
  second.state_dir += "-2";
  second.listen = server_->address();
  const auto in_use = StartController(second);
  EXPECT_EQ(in_use.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(in_use.status().ToString(), HasSubstr("Address already in use"));
  second.listen = "0.0.0.0:0";
  const auto open = StartController(second);
  EXPECT_EQ(open.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(open.status().ToString(), HasSubstr("not loopback"));
  second.listen = "127.0.0.1";
  EXPECT_EQ(StartController(second).status().code(), absl::StatusCode::kInvalidArgument);
  second.listen = "127.0.0.1:0";
  second.state_dir = options_.state_dir;
  EXPECT_EQ(StartController(second).status().code(), absl::StatusCode::kFailedPrecondition);
  std::filesystem::remove_all(options_.state_dir + "-2");
}

TEST_F(ServicesTest, HealthAndReflectionAnswer) {
  auto [status, bytes] = Call("/grpc.health.v1.Health/Check", "\x0a\x0etoroid.v1.Jobs");
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(bytes, "\x08\x01");  // status: SERVING
  EXPECT_EQ(Call("/grpc.health.v1.Health/Check", "\x0a\x04nope").first.error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Call("/grpc.channelz.v1.Channelz/GetServers", "").first.ok());
  // Reflection streams, so here only that the method is known.
  EXPECT_NE(
      Call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "").first.error_code(),
      grpc::StatusCode::UNIMPLEMENTED);
}

TEST(ClientTest, UnreachableControllerSaysSo) {
  ClientOptions options;
  options.controller = "127.0.0.1:1";
  const auto jobs = NewClient(options)->ListPods();
  EXPECT_EQ(jobs.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(jobs.status().ToString(), HasSubstr("controller is not reachable: 127.0.0.1:1"));
}

// An address that takes connections and never says a word, as a network does that swallows all.
TEST(ClientTest, AWatchNoticesThatNobodyAnswers) {
  const int silent = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(silent, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(silent, 8), 0);
  ASSERT_EQ(getsockname(silent, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ClientOptions options;
  options.controller = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  options.stream = options.timeout = absl::Milliseconds(50);
  const std::unique_ptr<Client> client = NewClient(options);
  const absl::Status watched = client->WatchJob("j", 0, [](const JobEvent&) { return true; });
  const absl::Status logged =
      client->StreamLogs({"j", 0, true, {}}, [](const LogLine&) { return true; });
  for (const absl::Status& status : {watched, logged, client->ListPods().status()}) {
    EXPECT_EQ(GetErrorInfo(status).reason, "NOT_REACHABLE") << status;
    EXPECT_THAT(status.ToString(), HasSubstr("no answer within 50ms"));
  }
  close(silent);
}

}  // namespace
}  // namespace toroid
