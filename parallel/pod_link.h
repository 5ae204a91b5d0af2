// PodLink: how a rank of one pod reaches ranks of the other pods of its job. Gradients or weight
// deltas travel over it, never what belongs to one pod's mesh.
//
// Messages between two ranks arrive whole, in order and exactly once, as long as both live, however
// often the line between them is cut. What is on its way is bounded: Send waits while too much of
// what it sent that peer has not been taken yet. A message of an earlier launch of its sender is
// dropped and counted (`epoch`, house rules of fencing).
//
// Two implementations: in one process for tests (in_process_pod_link.h), gRPC streams (rpc).
// Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "parallel/shared_bytes.h"

namespace toroid {

class Communicator;

// A rank of a pod of this job.
struct PodRank {
  int64_t pod = 0, rank = 0;
  auto operator<=>(const PodRank&) const = default;
};
// "pod 1 rank 0"
std::string ToString(PodRank rank);

// What a rank says of itself when it meets another.
struct PodIdentity {
  std::string job;
  PodRank self;
  uint64_t epoch = 0;  // of this pod's launch
  // What both sides must have alike, each "name: value": version, model, exchange, data. The first
  // that differs is an error that names both values.
  std::vector<std::string> terms;
};

struct PodMessage {
  PodRank from;        // filled in by the link
  uint64_t epoch = 0;  // of the sender; filled in by the link
  uint64_t view = 0;   // of the membership that it was made for
  int32_t kind = 0;    // what it is: PodExchange's
  int64_t step = 0;
  int32_t fragment = 0;
  int32_t codec = 0;
  double weight = 0;  // tokens that it stands for
  SharedBytes payload;
};

// FailedPrecondition, with both values, if the two are of other jobs or differ in a term: what
// `own` is told of `peer`.
absl::Status CompareTerms(const PodIdentity& own, const PodIdentity& peer);

// The most bytes of a payload.
constexpr int64_t kMostPodPayload = int64_t{1} << 30;

struct PodLinkCounters {
  int64_t payload_sent = 0, payload_received = 0;  // bytes, each message once
  int64_t wire_sent = 0;                           // with headers, and what was sent again
  int64_t stale_dropped = 0;                       // messages of an earlier epoch
  int64_t reconnects = 0;                          // of streams that broke, to the same launch
};

class PodLink {
 public:
  virtual ~PodLink() = default;

  virtual const PodIdentity& identity() const = 0;
  // Takes the message. Waits while the peer's queue is full, until `deadline`: DeadlineExceeded
  // naming the peer. NotFound: no such peer. FailedPrecondition: the peer's terms are other ones
  // (and stays so).
  virtual absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) = 0;
  // The next message of any peer; empty at `deadline`. FailedPrecondition as above.
  virtual absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) = 0;
  // When something was last heard of a pod, that is of the quietest of its ranks that this one has
  // sent anything to or had anything from: a process that stands still says nothing although its
  // line is up. InfinitePast: of one of them never, or there is none.
  virtual absl::Time LastHeard(int64_t pod) const = 0;
  // Collective over `world`, this pod's: from here on Send reaches those launches of other pods
  // that rank 0 has heard of.
  virtual absl::Status Renew(Communicator& world) {
    (void)world;
    return absl::OkStatus();
  }
  virtual PodLinkCounters counters() const = 0;
};

}  // namespace toroid
