// The controller's process: job store, logic and gRPC services behind one listening address.
//
// Services: toroid.v1.Jobs, Pods and Inference for clients; toroid.internal.v1.Agents and Workers
// for our own processes; grpc.health.v1, reflection and channelz for probes. Without TLS on
// loopback addresses only; with it everybody who dials, probes too, shows a certificate.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/tls.h"

namespace toroid {

struct ControllerOptions {
  std::string listen = "127.0.0.1:7070";     // port 0: any free one
  std::string state_dir;                     // jobs and logs; created if missing
  absl::Duration lease = absl::Seconds(15);  // an agent unheard of for so long is lost
  bool reflection = true;
  Tls tls;
};

// Thread-safe.
class ControllerServer {
 public:
  virtual ~ControllerServer() = default;  // shuts down at once if still running
  virtual int port() const = 0;
  virtual std::string address() const = 0;  // "127.0.0.1:7070" with the bound port
  // Health turns NOT_SERVING, calls in flight get `grace`, then are cancelled.
  virtual void Shutdown(absl::Duration grace) = 0;
  // Until Shutdown has ended.
  virtual void Wait() = 0;
};

// Returns once the port listens. InvalidArgument: an unreadable address, or one that is not
// loopback without TLS;
// FailedPrecondition: the address cannot be listened on, state_dir is in use by another controller;
// PermissionDenied or Internal: state_dir cannot be used.
absl::StatusOr<std::unique_ptr<ControllerServer>> StartController(const ControllerOptions& options);

}  // namespace toroid
