// What our gRPC servers and those who dial them have alike: credentials, limits, where one listens.
#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "rpc/tls.h"

namespace grpc {
class ServerBuilder;
}

namespace toroid {

// Plaintext if `tls` is not on.
std::shared_ptr<grpc::ChannelCredentials> DialCredentials(const Tls& tls);
// Who shows no certificate of the CA is refused.
std::shared_ptr<grpc::ServerCredentials> ListenCredentials(const Tls& tls);

// Sizes, keepalive (grpc_status.h) and caps of a server.
void SetServerLimits(grpc::ServerBuilder* builder);

// InvalidArgument: not host:port, or not loopback and in plaintext.
absl::Status CheckListenAddress(const std::string& listen, const Tls& tls);

// FailedPrecondition (CANNOT_LISTEN) for an address that gRPC could not listen on, with the reason,
// which gRPC does not tell. remedy: "give --listen another address".
absl::Status CannotListen(const std::string& listen, absl::string_view remedy);

}  // namespace toroid
