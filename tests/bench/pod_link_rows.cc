// pod_link_rows: bytes per second of GrpcPodLink beside raw gRPC streams of the same messages, with
// the same TLS, flows and frame size, in one process over loopback. Rounds of the two alternate, so
// that both see the same machine; the median of each is printed. What arrived is compared first.
//
//   pod_link_rows [MIB] [ROUNDS]
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/check.h"
#include "rpc/exchange_link.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"
#include "rpc/pki.h"
#include "rpc/pod_stream.h"
#include "toroid/internal/v1/exchange.grpc.pb.h"

namespace toroid {
namespace {

namespace wire = internal::v1;

constexpr int64_t kMessage = int64_t{16} << 20;

// Reads frames, and says at the end how many bytes there were.
class RawService final : public wire::Exchange::Service {
 public:
  grpc::Status Stream(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<wire::StreamAck, wire::StreamFrame>* stream) override {
    wire::StreamFrame frame;
    uint64_t bytes = 0;
    while (stream->Read(&frame)) bytes += frame.data().size();
    wire::StreamAck ack;
    ack.set_received(bytes);
    stream->Write(ack);
    return grpc::Status::OK;
  }
};

class Raw {
 public:
  Raw(const Tls& tls, int flows) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", ListenCredentials(tls), &port);
    SetServerLimits(&builder);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    for (int i = 0; i < flows; ++i) {
      stubs_.push_back(wire::Exchange::NewStub(grpc::CreateCustomChannel(
          absl::StrCat("127.0.0.1:", port), DialCredentials(tls), ClientChannelArguments())));
    }
  }
  ~Raw() { server_->Shutdown(std::chrono::system_clock::now()); }

  double Seconds(int64_t bytes) {
    const std::string payload(kPodFrameBytes, 'x');
    const absl::Time begin = absl::Now();
    std::vector<std::thread> threads;
    const int64_t each = bytes / static_cast<int64_t>(stubs_.size());
    for (const auto& stub : stubs_) {
      threads.emplace_back([&stub, &payload, each] {
        grpc::ClientContext context;
        const auto stream = stub->Stream(&context);
        for (int64_t done = 0; done < each; done += kPodFrameBytes) {
          wire::StreamFrame frame;
          frame.set_data(payload);
          TOROID_CHECK(stream->Write(frame));
        }
        stream->WritesDone();
        wire::StreamAck ack;
        TOROID_CHECK(stream->Read(&ack));
        TOROID_CHECK_EQ(static_cast<int64_t>(ack.received()), each);
        TOROID_CHECK(stream->Finish().ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  RawService service_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::unique_ptr<wire::Exchange::Stub>> stubs_;
};

class Linked {
 public:
  Linked(const Tls& tls, int flows) {
    GrpcPodLinkOptions options;
    options.tls = tls;
    options.flows = flows;
    a_ = *NewGrpcPodLink({"bench", {0, 0}, 1, {}}, options);
    b_ = *NewGrpcPodLink({"bench", {1, 0}, 1, {}}, options);
    a_->AddPeer({1, 0}, absl::StrCat("127.0.0.1:", b_->port()));
  }

  double Seconds(int64_t bytes) {
    const absl::Time limit = absl::Now() + absl::Minutes(5);
    const int64_t messages = bytes / kMessage;
    const absl::Time begin = absl::Now();
    std::thread sender([&] {
      for (int64_t i = 0; i < messages; ++i) {
        PodMessage message;
        message.payload.assign(kMessage, static_cast<char>('a' + i % 26));
        TOROID_CHECK(a_->Send({1, 0}, std::move(message), limit).ok());
      }
    });
    for (int64_t i = 0; i < messages; ++i) {
      const auto message = b_->Receive(limit);
      TOROID_CHECK(message.ok() && message->has_value());
      const std::string& payload = (*message)->payload;
      TOROID_CHECK_EQ(static_cast<int64_t>(payload.size()), kMessage);
      TOROID_CHECK(payload.front() == 'a' + i % 26 && payload.back() == 'a' + i % 26);
    }
    sender.join();
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  std::unique_ptr<GrpcPodLink> a_, b_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Row(const char* name, const Tls& tls, int flows, int64_t mib, int rounds) {
  const int64_t bytes = mib << 20;
  Raw raw(tls, flows);
  Linked linked(tls, flows);
  std::vector<double> raw_rates, linked_rates;
  for (int round = 0; round <= rounds; ++round) {
    const double of_raw = static_cast<double>(bytes) / 1e6 / raw.Seconds(bytes);
    const double of_link = static_cast<double>(bytes) / 1e6 / linked.Seconds(bytes);
    if (round == 0) continue;  // connections are made in it
    raw_rates.push_back(of_raw);
    linked_rates.push_back(of_link);
  }
  const double of_raw = Median(raw_rates), of_link = Median(linked_rates);
  std::printf("%-10s flows %d  raw gRPC %8.0f MB/s  link %8.0f MB/s  link/raw %.2f\n", name, flows,
              of_raw, of_link, of_link / of_raw);
}

int Main(int argc, char** argv) {
  const int64_t mib = argc > 1 ? std::atoll(argv[1]) : 512;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 5;
  QuietGrpc();
  char name[] = "/tmp/pod_link_rows-XXXXXX";
  TOROID_CHECK(mkdtemp(name) != nullptr);
  TOROID_CHECK(InitPki(name).ok());
  const auto tls = ReadTls(*IssueCertificate(name, "here", 1));
  std::filesystem::remove_all(name);
  TOROID_CHECK(tls.ok());
  std::printf("%lld MiB in messages of 16 MiB, frames of 1 MiB, median of %d rounds\n",
              static_cast<long long>(mib), rounds);
  for (int flows : {1, 2, 4}) Row("TLS", *tls, flows, mib, rounds);
  Row("plaintext", Tls(), 2, mib, rounds);
  return 0;
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) { return toroid::Main(argc, argv); }
