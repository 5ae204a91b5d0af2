#include "launcher/pod_peers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/services.h"
#include "parallel/host_exchange.h"
#include "rpc/connect_pods.h"

namespace toroid {
namespace {

constexpr char kLine[] =
    "mpirun ... toroid train job.textproto --pod 0 --pod-peers hostA:7091,hostB:7091";

}  // namespace

const OptionTable kPodPeersOptions = {
    "pods of one job, each started by itself",
    {
        {"--pod", ValueKind::kCount, "N", "", "which of the job's pods this world is, from 0"},
        {"--pod-peers", ValueKind::kText, "A,B", "",
         "host:port where rank 0 of each pod listens, in the order of pods; with --tls-dir on any "
         "host"},
    }};

absl::StatusOr<std::optional<PodPeers>> PodPeersOption(const Arguments& arguments) {
  if (!arguments.Has("--pod") && !arguments.Has("--pod-peers")) {
    for (const Option& flag : kSlowLinkOptions.options) {
      if (!arguments.Has(flag.names)) continue;
      return UsageError(
          absl::StrCat(flag.names, " without --pod-peers: it is of a link between pods: ", kLine));
    }
    return std::optional<PodPeers>();
  }
  if (!arguments.Has("--pod") || !arguments.Has("--pod-peers")) {
    return UsageError(absl::StrCat(
        arguments.Has("--pod") ? "--pod without --pod-peers" : "--pod-peers without --pod",
        ": give both, once for each pod: ", kLine));
  }
  PodPeers peers;
  peers.pod = arguments.Count("--pod");
  peers.addresses = absl::StrSplit(arguments.Text("--pod-peers"), ',');
  peers.tls_dir = arguments.Text("--tls-dir");
  peers.throttle = SlowLink(arguments);
  const int64_t count = int64_t(peers.addresses.size());
  if (peers.pod >= count) {
    return UsageError(absl::StrCat("bad value of --pod: ", peers.pod, ": --pod-peers has ", count,
                                   count == 1 ? " address" : " addresses", ": give 0 to ",
                                   count - 1));
  }
  return std::make_optional(std::move(peers));
}

absl::Status CheckPods(const PodsOptions& of_job, const std::optional<PodPeers>& peers) {
  const int64_t pods = of_job.count;
  if (pods > 1 && of_job.policy == PodsOptions::Policy::kContinue) {
    return absl::InvalidArgumentError(
        "train.exchange.policy: CONTINUE without a controller: nobody says which pods are lost: "
        "take HALT, or toroid job submit");
  }
  const int64_t given = peers ? int64_t(peers->addresses.size()) : 1;
  if (pods == given) return absl::OkStatus();
  if (!peers) {
    return absl::InvalidArgumentError(
        absl::StrCat("mesh.pods: ", pods, ": this is one world: start one for each pod: ", kLine));
  }
  return absl::InvalidArgumentError(absl::StrCat("mesh.pods: ", pods, ": --pod-peers has ", given,
                                                 given == 1 ? " address" : " addresses",
                                                 ": give one for each pod of the job"));
}

std::function<absl::StatusOr<std::unique_ptr<PodLink>>(const PodMeeting&)> MeetPeers(
    PodPeers peers) {
  return [peers = std::move(peers)](
             const PodMeeting& meeting) -> absl::StatusOr<std::unique_ptr<PodLink>> {
    ConnectPodsOptions options;
    const auto tls = ReadTls(peers.tls_dir);
    TOROID_RETURN_IF_ERROR(ShareStatus(meeting.world, tls.status()));
    options.tls = *tls;
    options.peers = peers.addresses;
    options.throttle = peers.throttle;
    options.tick = meeting.tick;
    options.stop = meeting.stop;
    options.note = meeting.note;
    PodIdentity identity;
    identity.job = meeting.plan.job;
    identity.self.pod = peers.pod;
    identity.terms = PodTerms(meeting.plan, meeting.model);
    identity.epoch = GatherHost(meeting.world, uint64_t(absl::ToUnixMicros(absl::Now())))[0];
    return ConnectPods(meeting.world, std::move(identity), options);
  };
}

}  // namespace toroid
