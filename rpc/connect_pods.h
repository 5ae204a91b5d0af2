// How the worlds of one job find each other. Without a controller: rank 0 of each pod listens where
// everybody was told, and says where its other ranks do. With one: the controller is told where all
// ranks listen, and tells all pods.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/communicator.h"
#include "parallel/pod_link.h"
#include "rpc/control.h"
#include "rpc/exchange_link.h"
#include "rpc/tls.h"

namespace toroid {

struct ConnectPodsOptions {
  // Where rank 0 of each pod listens, host:port, in the order of pods; the same list on all.
  std::vector<std::string> peers;
  Tls tls;
  ThrottleOptions throttle;
  // Called about once a second on every rank of the world while others are waited for.
  std::function<void()> tick = [] {};
  // On rank 0: true ends the waiting.
  std::function<bool()> stop = [] { return false; };
  // On rank 0: who is waited for, once each.
  std::function<void(const std::string&)> note = [](const std::string&) {};
};

// A rank's link to all ranks of all other pods, once all pods are there: policy `halt`, so they are
// waited for without end. identity.self.pod is this world's, the rank is filled in. Collective over
// `world`; an error is the same on all ranks. Ranks other than 0 listen on free ports, under the
// host of this pod's entry where they share it with rank 0, else under their host's name.
// InvalidArgument: the list, or an address in it; FailedPrecondition: ranks on several hosts
// without TLS, an address in use, or terms that differ; Unauthenticated: TLS keeps pods apart;
// Cancelled.
absl::StatusOr<std::unique_ptr<PodLink>> ConnectPods(Communicator& world, PodIdentity identity,
                                                     const ConnectPodsOptions& options);

// What rank 0 says to its controller, and hears.
struct PodsOfController {
  std::function<void(const std::vector<std::string>& addresses)> tell;  // of its ranks
  // Where the pods listen that take part; waits a second at most, empty: not known yet.
  std::function<std::optional<PodTable>()> table;
};
struct JoinPodsOptions {
  Tls tls;
  ThrottleOptions throttle;
  std::function<void()> tick = [] {};  // as above
  std::function<bool()> stop = [] { return false; };
};

// The same through a controller: `controller` counts on rank 0, where identity.self.pod does too,
// and is asked again by the link's Renew.
// Collective over `world`; an error is the same on all ranks. Without TLS all ranks of all pods
// must be on one host.
absl::StatusOr<std::unique_ptr<PodLink>> JoinPods(Communicator& world, PodIdentity identity,
                                                  const PodsOfController& controller,
                                                  const JoinPodsOptions& options);

}  // namespace toroid
