// pod_link_rows: bytes per second of GrpcPodLink beside raw gRPC streams of the same messages, with
// the same TLS, flows and frame size, in one process over loopback. A pair is a round of each, one
// after the other, who is first in turns: a neighbour slows both alike. The median of each, and of
// the pairs' ratios with its quartiles; processor seconds of this process for a gigabyte, which a
// neighbour changes little. What arrived is compared.
//
//   pod_link_rows [MIB] [PAIRS] [only: TLS | plaintext] [FLOWS]
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/check.h"
#include "parallel/pod_stream.h"
#include "rpc/exchange_link.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"
#include "rpc/pki.h"
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

  double Seconds(std::vector<PodMessage>& messages) {
    const absl::Time begin = absl::Now();
    std::vector<std::thread> threads;
    const size_t flows = stubs_.size(), frames = kMessage / kPodFrameBytes;
    for (size_t flow = 0; flow < flows; ++flow) {
      threads.emplace_back([&, flow] {
        grpc::ClientContext context;
        const auto stream = stubs_[flow]->Stream(&context);
        int64_t sent = 0;
        for (size_t i = flow; i < messages.size() * frames; i += flows, sent += kPodFrameBytes) {
          wire::StreamFrame frame;
          frame.set_data(messages[i / frames].payload.data() + i % frames * kPodFrameBytes,
                         kPodFrameBytes);
          TOROID_CHECK(stream->Write(frame));
        }
        stream->WritesDone();
        wire::StreamAck ack;
        TOROID_CHECK(stream->Read(&ack));
        TOROID_CHECK_EQ(static_cast<int64_t>(ack.received()), sent);
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

  double Seconds(std::vector<PodMessage>& messages) {
    const absl::Time limit = absl::Now() + absl::Minutes(5);
    const absl::Time begin = absl::Now();
    std::thread sender([&] {
      for (PodMessage& message : messages) {
        TOROID_CHECK(a_->Send({1, 0}, std::move(message), limit).ok());
      }
    });
    for (size_t i = 0; i < messages.size(); ++i) {
      const auto message = b_->Receive(limit);
      TOROID_CHECK(message.ok() && message->has_value());
      const absl::string_view payload = (*message)->payload;
      TOROID_CHECK_EQ(static_cast<int64_t>(payload.size()), kMessage);
      const char letter = static_cast<char>('a' + i % 26);
      TOROID_CHECK(payload.front() == letter && payload.back() == letter);
    }
    sender.join();
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  std::unique_ptr<GrpcPodLink> a_, b_;
};

// What both send; made before the clock starts.
std::vector<PodMessage> Messages(int64_t bytes) {
  std::vector<PodMessage> messages(bytes / kMessage);
  for (size_t i = 0; i < messages.size(); ++i) {
    messages[i].payload = std::string(kMessage, static_cast<char>('a' + i % 26));
  }
  return messages;
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

double ProcessorSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Side {
  std::vector<double> rates, costs;  // MB/s; processor seconds for a GB

  template <typename Way>
  void Measure(Way& way, int64_t bytes) {
    std::vector<PodMessage> messages = Messages(bytes);
    const double before = ProcessorSeconds();
    const double seconds = way.Seconds(messages);
    rates.push_back(static_cast<double>(bytes) / 1e6 / seconds);
    costs.push_back((ProcessorSeconds() - before) / (static_cast<double>(bytes) / 1e9));
  }
};

void Row(const char* name, const Tls& tls, int flows, int64_t mib, int pairs) {
  const int64_t bytes = mib << 20;
  Raw raw(tls, flows);
  Linked linked(tls, flows);
  Side of_raw, of_link;
  of_raw.Measure(raw, bytes);  // connections are made
  of_link.Measure(linked, bytes);
  of_raw = of_link = Side();
  for (int pair = 0; pair < pairs; ++pair) {
    if (pair % 2 == 0) of_raw.Measure(raw, bytes);
    of_link.Measure(linked, bytes);
    if (pair % 2 == 1) of_raw.Measure(raw, bytes);
  }
  std::vector<double> ratios;
  for (int pair = 0; pair < pairs; ++pair) {
    ratios.push_back(of_link.rates[pair] / of_raw.rates[pair]);
  }
  std::printf(
      "%-10s flows %d  raw gRPC %6.0f MB/s %5.2f s/GB  link %6.0f MB/s %5.2f s/GB  link/raw %.2f "
      "(%.2f to %.2f)\n",
      name, flows, Quantile(of_raw.rates, 0.5), Quantile(of_raw.costs, 0.5),
      Quantile(of_link.rates, 0.5), Quantile(of_link.costs, 0.5), Quantile(ratios, 0.5),
      Quantile(ratios, 0.25), Quantile(ratios, 0.75));
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const int64_t mib = argc > 1 ? std::atoll(argv[1]) : 256;
  const int pairs = argc > 2 ? std::atoi(argv[2]) : 15;
  const std::string only = argc > 3 ? argv[3] : "";
  const int only_flows = argc > 4 ? std::atoi(argv[4]) : 0;
  QuietGrpc();
  char name[] = "/tmp/pod_link_rows-XXXXXX";
  TOROID_CHECK(mkdtemp(name) != nullptr);
  TOROID_CHECK(InitPki(name).ok());
  const auto tls = ReadTls(*IssueCertificate(name, "here", 1));
  std::filesystem::remove_all(name);
  TOROID_CHECK(tls.ok());
  std::printf("%lld MiB in messages of 16 MiB, frames of 1 MiB, medians of %d pairs\n",
              static_cast<long long>(mib), pairs);
  for (const std::string name : {"TLS", "plaintext"}) {
    for (const int flows : {1, 2, 4}) {
      if (!only.empty() && only != name) continue;
      if (only_flows > 0 && only_flows != flows) continue;
      Row(name.c_str(), name == "TLS" ? *tls : Tls(), flows, mib, pairs);
    }
  }
  return 0;
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) { return toroid::Main(argc, argv); }
