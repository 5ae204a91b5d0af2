#include "rpc/connect_pods.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/launcher_environment.h"
#include "parallel/passing_pod_link.h"

namespace toroid {
namespace {

// Pods that are missing are asked in turn: so long in all, but each for so long at least.
constexpr absl::Duration kRound = absl::Seconds(1), kLeastShare = absl::Milliseconds(200);

// Where a rank listens, as plain bytes that a collective carries.
struct AddressCard {
  std::array<char, 256> text{};
};

absl::Status CheckPeers(const std::vector<std::string>& peers, int64_t pod) {
  std::set<std::string> seen;
  for (const std::string& peer : peers) {
    const size_t colon = peer.rfind(':');
    int port = 0;
    if (colon == std::string::npos || colon == 0 || peer.size() >= sizeof(AddressCard) / 2 ||
        !absl::SimpleAtoi(peer.substr(colon + 1), &port) || port < 1 || port > 65535) {
      return absl::InvalidArgumentError(absl::StrCat("unreadable address of a pod: '", peer,
                                                     "': write --pod-peers hostA:7091,hostB:7091"));
    }
    if (!seen.insert(peer).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("address of two pods: ", peer, ": give each pod its own"));
    }
  }
  if (pod < 0 || pod >= static_cast<int64_t>(peers.size()) || peers.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("pod ", pod, " is not in the list: ", peers.size(),
                     " addresses are those of pods 0 to ", static_cast<int64_t>(peers.size()) - 1));
  }
  return absl::OkStatus();
}

// With certificates a rank listens on all addresses: a host's name may lead to its loopback there.
std::string ListenAt(const std::string& entry, bool first, const Tls& tls) {
  const size_t colon = entry.rfind(':');
  const std::string port = first ? entry.substr(colon + 1) : "0";
  const std::string host = !tls.on()                      ? entry.substr(0, colon)
                           : absl::StartsWith(entry, "[") ? "[::]"
                                                          : "0.0.0.0";
  return absl::StrCat(host, ":", port);
}

// Where every rank of every other pod listens, as text; empty while one is waited for.
class Table {
 public:
  Table(GrpcPodLink* link, const ConnectPodsOptions& options)
      : link_(link), options_(options), noted_(options.peers.size(), false) {
    for (size_t pod = 0; pod < options.peers.size(); ++pod) {
      if (static_cast<int64_t>(pod) != link->identity().self.pod) missing_.insert(pod);
    }
  }

  // One round of asking; true: all have answered.
  absl::StatusOr<bool> Ask() {
    // One that is not there takes no time of those behind it.
    const absl::Duration share =
        std::max(kLeastShare, kRound / static_cast<int64_t>(std::max<size_t>(1, missing_.size())));
    for (const size_t pod : std::set<size_t>(missing_)) {
      const auto met =
          link_->Meet(static_cast<int64_t>(pod), options_.peers[pod], absl::Now() + share);
      if (met.ok()) {
        for (size_t rank = 0; rank < met->size(); ++rank) {
          absl::StrAppend(&text_, pod, " ", rank, " 0 ", (*met)[rank], "\n");
        }
        missing_.erase(pod);
      } else if (met.status().code() != absl::StatusCode::kDeadlineExceeded) {
        return met.status();
      } else if (!noted_[pod]) {
        noted_[pod] = true;
        options_.note(absl::StrCat("waiting for pod ", pod, " at ", options_.peers[pod]));
      }
    }
    if (!missing_.empty() && options_.stop()) {
      return absl::CancelledError(
          absl::StrCat("interrupted while pod ", *missing_.begin(), " was waited for"));
    }
    return missing_.empty();
  }
  const std::string& text() const { return text_; }

 private:
  GrpcPodLink* const link_;
  const ConnectPodsOptions& options_;
  std::vector<bool> noted_;
  std::set<size_t> missing_;
  std::string text_;
};

// All ranks go through the rounds together, so that each can tell that it is alive.
absl::StatusOr<std::string> Gather(Communicator& world, GrpcPodLink* link,
                                   const ConnectPodsOptions& options) {
  Table table(link, options);
  while (true) {
    absl::StatusOr<bool> complete = false;
    if (world.rank() == 0) complete = table.Ask();
    TOROID_RETURN_IF_ERROR(ShareStatus(world, complete.status()));
    options.tick();
    const std::string text =
        BroadcastText(world, complete.ok() && *complete ? table.text() : std::string());
    TOROID_RETURN_IF_ERROR(world.Health());
    if (!text.empty()) return text;
  }
}

// This rank listens; `listen` as GrpcPodLinkOptions. Collective.
absl::StatusOr<std::unique_ptr<GrpcPodLink>> Listen(Communicator& world, const WorldHosts& hosts,
                                                    const PodIdentity& identity,
                                                    const std::string& listen, const Tls& tls,
                                                    const ThrottleOptions& throttle) {
  const int rank = world.rank();
  GrpcPodLinkOptions options;
  options.listen = listen;
  options.tls = tls;
  options.throttle = throttle;
  absl::StatusOr<std::unique_ptr<GrpcPodLink>> link =
      hosts.host_of[rank] != hosts.host_of[0] && !tls.on()
          ? absl::FailedPreconditionError(
                absl::StrCat("ranks on several hosts without TLS: ", hosts.names[0], " and ",
                             hosts.names[rank], ": give --tls-dir (toroid pki)"))
          : NewGrpcPodLink(identity, options);
  TOROID_RETURN_IF_ERROR(ShareStatus(world, link.status()));
  return link;
}

// Every rank's address, on every rank.
std::vector<std::string> GatherAddresses(Communicator& world, const std::string& own) {
  AddressCard card;
  std::strncpy(card.text.data(), own.c_str(), card.text.size() - 1);
  std::vector<std::string> addresses;
  for (const AddressCard& other : GatherHost(world, card))
    addresses.emplace_back(other.text.data());
  return addresses;
}

// Of every rank of every other pod where it listens, and the epoch of its launch: 0 without a
// controller.
struct KnownRank {
  PodRank rank;
  uint64_t epoch = 0;
  std::string address;
};
// Lines `pod rank epoch address`, without `own` pod.
absl::StatusOr<std::vector<KnownRank>> ReadTable(const std::string& table, int64_t own) {
  std::vector<KnownRank> out;
  for (const absl::string_view line : absl::StrSplit(table, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    KnownRank known;
    if (words.size() != 4 || !absl::SimpleAtoi(words[0], &known.rank.pod) ||
        !absl::SimpleAtoi(words[1], &known.rank.rank) ||
        !absl::SimpleAtoi(words[2], &known.epoch)) {
      return absl::InternalError(absl::StrCat("unreadable table of ranks: ", line));
    }
    known.address = words[3];
    if (known.rank.pod != own) out.push_back(std::move(known));
  }
  return out;
}

std::string TextOf(const PodTable& table) {
  std::string text;
  for (const PodAddresses& pod : table.pods) {
    for (size_t i = 0; i < pod.ranks.size(); ++i) {
      absl::StrAppend(&text, pod.pod, " ", i, " ", pod.epoch, " ", pod.ranks[i], "\n");
    }
  }
  return text;
}

// A rank's link to the pods that the controller tells of.
class JoinedLink final : public PassingPodLink {
 public:
  JoinedLink(std::unique_ptr<GrpcPodLink> link, PodsOfController controller)
      : PassingPodLink(*link), link_(std::move(link)), controller_(std::move(controller)) {}

  absl::Status Renew(Communicator& world) override {
    std::string text;
    if (world.rank() == 0) {
      if (const auto table = controller_.table()) text = TextOf(*table);
    }
    text = BroadcastText(world, text);
    TOROID_RETURN_IF_ERROR(world.Health());
    return Know(text);
  }

  // Of launches that were known before nothing changes; those that are in it no more are not
  // dialled, be it that this pod alone is left. An empty one says nothing: it is not known yet.
  absl::Status Know(const std::string& table) {
    if (table.empty()) return absl::OkStatus();
    TOROID_ASSIGN_OR_RETURN(const std::vector<KnownRank> ranks,
                            ReadTable(table, link_->identity().self.pod));
    std::set<PodRank> listed;
    for (const KnownRank& known : ranks) {
      listed.insert(known.rank);
      const auto [at, fresh] = launches_.try_emplace(known.rank, Launch{known.epoch});
      // One that was removed does not come back: what it missed is not sent again.
      if (!fresh && at->second.epoch >= known.epoch) continue;
      at->second = {known.epoch};
      link_->AddPeer(known.rank, known.address);
    }
    for (auto& [rank, launch] : launches_) {
      if (listed.count(rank) > 0 || std::exchange(launch.removed, true)) continue;
      link_->RemovePeer(rank);
    }
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<GrpcPodLink> link_;
  const PodsOfController controller_;
  struct Launch {
    uint64_t epoch = 0;
    bool removed = false;
  };
  std::map<PodRank, Launch> launches_;  // of one thread: that of the collective calls
};

}  // namespace

absl::StatusOr<std::unique_ptr<PodLink>> ConnectPods(Communicator& world, PodIdentity identity,
                                                     const ConnectPodsOptions& options) {
  TOROID_RETURN_IF_ERROR(CheckPeers(options.peers, identity.self.pod));
  const std::string& entry = options.peers[identity.self.pod];
  const WorldHosts hosts = HostsOf(world);
  const int rank = world.rank();
  identity.self.rank = rank;
  const bool beside_first = hosts.host_of[rank] == hosts.host_of[0];
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<GrpcPodLink> link,
                          Listen(world, hosts, identity, ListenAt(entry, rank == 0, options.tls),
                                 options.tls, options.throttle));
  const std::string host = beside_first ? entry.substr(0, entry.rfind(':')) : hosts.names[rank];
  link->Publish(GatherAddresses(world, absl::StrCat(host, ":", link->port())));
  TOROID_ASSIGN_OR_RETURN(const std::string table, Gather(world, link.get(), options));
  TOROID_ASSIGN_OR_RETURN(const std::vector<KnownRank> ranks, ReadTable(table, identity.self.pod));
  for (const KnownRank& known : ranks) link->AddPeer(known.rank, known.address);
  return std::unique_ptr<PodLink>(std::move(link));
}

absl::StatusOr<std::unique_ptr<PodLink>> JoinPods(Communicator& world, PodIdentity identity,
                                                  const PodsOfController& controller,
                                                  const JoinPodsOptions& options) {
  const WorldHosts hosts = HostsOf(world);
  const int rank = world.rank();
  identity.self.rank = rank;
  identity.self.pod = GatherHost(world, identity.self.pod)[0];
  TOROID_ASSIGN_OR_RETURN(
      std::unique_ptr<GrpcPodLink> link,
      Listen(world, hosts, identity, options.tls.on() ? "0.0.0.0:0" : "127.0.0.1:0", options.tls,
             options.throttle));
  const std::string host = options.tls.on() ? hosts.names[rank] : "127.0.0.1";
  const std::vector<std::string> addresses =
      GatherAddresses(world, absl::StrCat(host, ":", link->port()));
  if (rank == 0) controller.tell(addresses);
  std::string table;
  while (table.empty()) {
    absl::Status stopped;
    if (rank == 0) {
      if (const std::optional<PodTable> pods = controller.table()) {
        table = TextOf(*pods);
      } else if (options.stop()) {
        stopped = absl::CancelledError("interrupted while the job's other pods were waited for");
      }
    }
    TOROID_RETURN_IF_ERROR(ShareStatus(world, stopped));
    options.tick();
    table = BroadcastText(world, table);
    TOROID_RETURN_IF_ERROR(world.Health());
  }
  auto joined = std::make_unique<JoinedLink>(std::move(link), controller);
  TOROID_RETURN_IF_ERROR(joined->Know(table));
  return std::unique_ptr<PodLink>(std::move(joined));
}

}  // namespace toroid
