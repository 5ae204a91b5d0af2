// Pods of a training job that find each other without a controller: each world is told which pod it
// is and where rank 0 of every pod listens.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "parallel/program.h"
#include "rpc/link_throttle.h"

namespace toroid {

extern const OptionTable kPodPeersOptions;  // --pod --pod-peers --link-..

struct PodPeers {
  int64_t pod = 0;
  std::vector<std::string> addresses;  // host:port, in the order of pods
  std::string tls_dir;                 // empty: plaintext, on loopback alone
  ThrottleOptions throttle;            // of what each rank sends to each rank of another pod
};

// --pod and --pod-peers; empty if neither was given. Usage errors: one without the other or
// --link-.. without both, a pod that is not in the list.
absl::StatusOr<std::optional<PodPeers>> PodPeersOption(const Arguments& arguments);

// OK if a job on these pods can run with these peers, or, on one pod, without. InvalidArgument with
// the line that works.
absl::Status CheckPods(const PodsOptions& pods, const std::optional<PodPeers>& peers);

// For ProgramChannel::meet. The launch's epoch is when it was started: a later one fences off what
// an earlier one of the same pod sent.
std::function<absl::StatusOr<std::unique_ptr<PodLink>>(const PodMeeting&)> MeetPeers(
    PodPeers peers);

}  // namespace toroid
