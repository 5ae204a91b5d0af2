#include "rpc/grpc_credentials.h"

#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "rpc/error_info.h"
#include "rpc/grpc_status.h"

namespace toroid {
namespace {

// Why nothing can listen there. Empty if something can by now.
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

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> DialCredentials(const Tls& tls) {
  if (!tls.on()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({tls.ca, tls.key, tls.certificate});
}

std::shared_ptr<grpc::ServerCredentials> ListenCredentials(const Tls& tls) {
  if (!tls.on()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls.ca;
  options.pem_key_cert_pairs.push_back({tls.key, tls.certificate});
  return grpc::SslServerCredentials(options);
}

void SetServerLimits(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder->SetMaxSendMessageSize(kMaxReceiveBytes);
  for (const auto& [name, value] :
       {std::pair(GRPC_ARG_ALLOW_REUSEPORT, 0), std::pair(GRPC_ARG_KEEPALIVE_TIME_MS, kPingAfterMs),
        std::pair(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingAnswerMs),
        std::pair(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        std::pair(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
        std::pair(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
        std::pair(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10),
        std::pair(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100), std::pair(GRPC_ARG_ENABLE_CHANNELZ, 1)}) {
    builder->AddChannelArgument(name, value);
  }
}

absl::Status CheckListenAddress(const std::string& listen, const Tls& tls) {
  const size_t colon = listen.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(listen.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("unreadable address: '", listen, "': write 127.0.0.1:7070"));
  }
  if (!tls.on() && !IsLoopback(listen)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address is not loopback: ", listen,
        ": plaintext is spoken on this machine only: give --tls-dir (toroid pki), or 127.0.0.1"));
  }
  return absl::OkStatus();
}

absl::Status CannotListen(const std::string& listen, absl::string_view remedy) {
  const size_t colon = listen.rfind(':');
  const std::string why = WhyNoPort(listen.substr(0, colon), listen.substr(colon + 1));
  return MakeError(absl::StatusCode::kFailedPrecondition,
                   absl::StrCat("cannot listen: ", listen, ": ",
                                why.empty() ? "it was refused" : why, ": ", remedy),
                   {"CANNOT_LISTEN", {{"address", listen}}, {}});
}

}  // namespace toroid
