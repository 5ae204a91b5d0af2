// GrpcPodLink: the PodLink between processes, gRPC streams with or without TLS.
//
// A rank dials the ranks that it sends to: `flows` connections each, frames one way,
// acknowledgements back. A flow that is cut is dialled again; what it had not delivered goes over
// the others meanwhile (parallel/pod_stream.h has the numbering). Both directions between two ranks
// are such pairs of their own. A launch is known by its epoch: a higher one ends what the earlier
// launch sent, a lower one is refused. Beside its flows a rank dials one more, on which it gives a
// sign of life four times a second that the peer acknowledges: so LastHeard of a peer that stands
// still is older than a second although the line is up. A dead line is noticed by keepalive within
// 15 s. Thread-safe.
//
// A peer that was never reached where it listens, because TLS keeps the two apart (rpc/tls.h), is
// waited for no longer: Send and Receive say so from then on, Unauthenticated.
//
// To the terms that both sides must have alike comes the format of frames (parallel/pod_frame.h). A
// frame that was spoilt on its way is sent again, three times in one place is once too often; one
// that no link makes is not taken however often it comes. Both sides say so then, InvalidArgument,
// and nothing of that launch is taken any more.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "parallel/pod_link.h"
#include "rpc/link_throttle.h"
#include "rpc/tls.h"

namespace toroid {

struct GrpcPodLinkOptions {
  std::string listen = "127.0.0.1:0";  // port 0: any free one; beyond loopback only with TLS
  Tls tls;
  int flows = 2;                   // to each peer
  int64_t queue_bytes = 64 << 20;  // to each peer, not taken yet; one message may be larger
  ThrottleOptions throttle;        // of what is sent, to each peer
};

class GrpcPodLink : public PodLink {
 public:
  // What is on its way to ranks that listen is delivered first, for at most 5 s.
  ~GrpcPodLink() override = default;

  virtual int port() const = 0;
  // Where the ranks of this pod listen, in rank order: what Meet is answered.
  virtual void Publish(std::vector<std::string> addresses) = 0;
  // Asks rank 0 of `pod`, which listens at `address`, where its ranks do, until `deadline`.
  // FailedPrecondition: it is another pod, or its terms are other ones; Unauthenticated: TLS keeps
  // the two apart (rpc/tls.h); DeadlineExceeded: nobody answers there.
  virtual absl::StatusOr<std::vector<std::string>> Meet(int64_t pod, const std::string& address,
                                                        absl::Time deadline) = 0;
  // Send reaches it from now on; it is dialled with the first message. Again: a later launch of it
  // listens elsewhere. What the earlier one has not taken is nobody's any more: it is dropped, and
  // a Send that waits for room ends, OK.
  virtual void AddPeer(PodRank peer, const std::string& address) = 0;
  // It is dialled no more; as above, and what is sent to it from here on goes nowhere, OK. Until it
  // is added again.
  virtual void RemovePeer(PodRank peer) = 0;
  // Cuts what has been dialled to that peer, as a broken cable does; it is dialled again `pause`
  // later. For tests.
  virtual void Cut(PodRank peer, absl::Duration pause = absl::ZeroDuration()) = 0;
};

// Listens. Errors as StartController's (rpc/server.h).
absl::StatusOr<std::unique_ptr<GrpcPodLink>> NewGrpcPodLink(PodIdentity identity,
                                                            const GrpcPodLinkOptions& options);

}  // namespace toroid
