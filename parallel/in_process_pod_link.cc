#include "parallel/in_process_pod_link.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

struct Waiting {
  int64_t ticket;  // order of sending, of all lines
  PodMessage message;
};

// From one rank to another.
struct Line {
  std::deque<Waiting> queue;
  int64_t bytes = 0;
  bool used = false;  // something was sent, ever
  bool cut = false;
  absl::Time cut_at;
  absl::Status refused;  // what the sender is told of the receiver's terms
};

// One launch of a rank.
struct Launch {
  PodIdentity identity;
  bool dropped = false;
  bool stopped = false;
  absl::Time stopped_at;
  std::map<PodRank, uint64_t> known;  // of others the launch that was there first, or at Renew
  PodLinkCounters counters;
};

struct Member {
  std::shared_ptr<Launch> launch;  // the last one
  bool here = false;
  absl::Time left = absl::InfinitePast();
};

}  // namespace

class InProcessPodNetwork::State {
 public:
  State(std::vector<PodRank> ranks, int64_t queue_bytes) : queue_bytes_(queue_bytes) {
    for (PodRank rank : ranks) members_[rank];
  }

  absl::StatusOr<std::shared_ptr<Launch>> Attach(PodIdentity identity);
  void Detach(const Launch& launch);
  void Cut(PodRank a, PodRank b, bool cut);
  void Drop(PodRank rank);
  void Stop(PodRank rank, bool stop);
  void Renew(Launch& own);
  absl::Status Send(Launch& from, PodRank to, PodMessage message, absl::Time deadline);
  absl::StatusOr<std::optional<PodMessage>> Receive(Launch& to, absl::Time deadline);
  absl::Time LastHeard(const Launch& own, int64_t pod);
  PodLinkCounters Counters(const Launch& launch) {
    const std::lock_guard lock(mutex_);
    return launch.counters;
  }

 private:
  using Lock = std::unique_lock<std::mutex>;

  Line& LineOf(PodRank from, PodRank to) { return lines_[{from, to}]; }
  bool current(const Launch& launch) {
    return members_[launch.identity.self].launch.get() == &launch;
  }
  void Leave(PodRank rank);
  absl::Status Alive(const Launch& launch) const;
  std::optional<PodMessage> Take(Launch& to);
  void WaitWhileStopped(Lock& lock, const Launch& launch) {
    changed_.wait(lock, [&] { return !launch.stopped; });
  }
  // False at the deadline.
  bool Wait(Lock& lock, absl::Time deadline);

  const int64_t queue_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t next_ticket_ = 0;
  std::map<PodRank, Member> members_;
  std::map<std::pair<PodRank, PodRank>, Line> lines_;
};

bool InProcessPodNetwork::State::Wait(Lock& lock, absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) {
    changed_.wait(lock);
    return true;
  }
  if (absl::Now() >= deadline) return false;
  changed_.wait_until(lock, absl::ToChronoTime(deadline));
  return true;
}

absl::StatusOr<std::shared_ptr<Launch>> InProcessPodNetwork::State::Attach(PodIdentity identity) {
  const std::lock_guard lock(mutex_);
  const PodRank self = identity.self;
  const auto found = members_.find(self);
  if (found == members_.end()) {
    return absl::NotFoundError(absl::StrCat(ToString(self), " is not of this network"));
  }
  Member& member = found->second;
  if (member.launch != nullptr && identity.epoch <= member.launch->identity.epoch) {
    return absl::FailedPreconditionError(absl::StrCat(
        ToString(self), " comes with epoch ", identity.epoch, ", a launch before it had epoch ",
        member.launch->identity.epoch, ": each launch needs a higher one"));
  }
  if (member.here) Leave(self);
  member.launch = std::make_shared<Launch>();
  member.launch->identity = std::move(identity);
  member.here = true;
  for (auto& [rank, other] : members_) {
    LineOf(self, rank).refused = absl::OkStatus();
    if (rank.pod == self.pod || other.launch == nullptr) continue;
    const PodIdentity &ours = member.launch->identity, &theirs = other.launch->identity;
    member.launch->known.emplace(rank, theirs.epoch);
    other.launch->known.emplace(self, ours.epoch);
    LineOf(self, rank).refused = CompareTerms(ours, theirs);
    // What the other was told of an earlier launch stays.
    absl::Status& refused = LineOf(rank, self).refused;
    if (refused.ok()) refused = CompareTerms(theirs, ours);
  }
  changed_.notify_all();
  return member.launch;
}

// What it had not taken and what a cut kept of it are lost.
void InProcessPodNetwork::State::Leave(PodRank rank) {
  Member& member = members_[rank];
  member.here = false;
  member.left = absl::Now();
  for (auto& [ends, line] : lines_) {
    if (ends.second != rank && !(ends.first == rank && line.cut)) continue;
    line.queue.clear();
    line.bytes = 0;
  }
  changed_.notify_all();
}

void InProcessPodNetwork::State::Detach(const Launch& launch) {
  const std::lock_guard lock(mutex_);
  const PodRank self = launch.identity.self;
  if (current(launch) && members_[self].here) Leave(self);
}

void InProcessPodNetwork::State::Drop(PodRank rank) {
  const std::lock_guard lock(mutex_);
  const auto found = members_.find(rank);
  if (found == members_.end() || !found->second.here) return;
  found->second.launch->dropped = true;
  found->second.launch->stopped = false;
  Leave(rank);
}

void InProcessPodNetwork::State::Stop(PodRank rank, bool stop) {
  const std::lock_guard lock(mutex_);
  TOROID_CHECK(members_.contains(rank) && members_[rank].here);
  Launch& launch = *members_[rank].launch;
  if (stop && !launch.stopped) launch.stopped_at = absl::Now();
  launch.stopped = stop;
  changed_.notify_all();
}

// What waits for an earlier launch than the one that is there now is for nobody.
void InProcessPodNetwork::State::Renew(Launch& own) {
  const std::lock_guard lock(mutex_);
  for (auto& [rank, epoch] : own.known) {
    const uint64_t now = members_[rank].launch->identity.epoch;
    if (std::exchange(epoch, now) == now) continue;
    Line& line = LineOf(own.identity.self, rank);
    line.queue.clear();
    line.bytes = 0;
  }
  changed_.notify_all();
}

void InProcessPodNetwork::State::Cut(PodRank a, PodRank b, bool cut) {
  const std::lock_guard lock(mutex_);
  TOROID_CHECK(members_.contains(a) && members_.contains(b));
  for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)}) {
    Line& line = LineOf(from, to);
    if (line.cut == cut) continue;
    line.cut = cut;
    line.cut_at = absl::Now();
    Member& member = members_[from];
    if (!cut && member.here) ++member.launch->counters.reconnects;
  }
  changed_.notify_all();
}

absl::Status InProcessPodNetwork::State::Alive(const Launch& launch) const {
  if (!launch.dropped) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(ToString(launch.identity.self), " was dropped"));
}

absl::Status InProcessPodNetwork::State::Send(Launch& from, PodRank to, PodMessage message,
                                              absl::Time deadline) {
  const PodRank self = from.identity.self;
  const int64_t size = int64_t(message.payload.size());
  if (size > kMostPodPayload) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", size, " bytes to ",
                                                   ToString(to), ": at most ", kMostPodPayload));
  }
  message.from = self;
  message.epoch = from.identity.epoch;
  Lock lock(mutex_);
  if (to.pod == self.pod || !members_.contains(to)) {
    return absl::NotFoundError(absl::StrCat(ToString(to), " is no peer of ", ToString(self)));
  }
  Line& line = LineOf(self, to);
  while (true) {
    WaitWhileStopped(lock, from);
    TOROID_RETURN_IF_ERROR(Alive(from));
    TOROID_RETURN_IF_ERROR(line.refused);
    if (line.queue.empty() || line.bytes + size <= queue_bytes_) break;
    if (!Wait(lock, deadline)) {
      WaitWhileStopped(lock, from);
      return absl::DeadlineExceededError(absl::StrCat(ToString(to), " has not taken ", line.bytes,
                                                      " bytes of what was sent before"));
    }
  }
  from.counters.payload_sent += size;
  from.counters.wire_sent += size;
  line.bytes += size;
  line.used = true;
  line.queue.push_back({next_ticket_++, std::move(message)});
  changed_.notify_all();
  return absl::OkStatus();
}

// The oldest message of the lines that are up.
std::optional<PodMessage> InProcessPodNetwork::State::Take(Launch& to) {
  Line* oldest = nullptr;
  for (auto& [ends, line] : lines_) {
    if (ends.second != to.identity.self || line.cut || !line.refused.ok()) continue;
    while (!line.queue.empty()) {
      const PodMessage& message = line.queue.front().message;
      if (message.epoch >= members_[ends.first].launch->identity.epoch) break;
      ++to.counters.stale_dropped;
      line.bytes -= int64_t(message.payload.size());
      line.queue.pop_front();
      changed_.notify_all();
    }
    if (line.queue.empty()) continue;
    if (oldest == nullptr || line.queue.front().ticket < oldest->queue.front().ticket) {
      oldest = &line;
    }
  }
  if (oldest == nullptr) return std::nullopt;
  PodMessage message = std::move(oldest->queue.front().message);
  oldest->queue.pop_front();
  oldest->bytes -= int64_t(message.payload.size());
  to.counters.payload_received += int64_t(message.payload.size());
  changed_.notify_all();
  return message;
}

absl::StatusOr<std::optional<PodMessage>> InProcessPodNetwork::State::Receive(Launch& to,
                                                                              absl::Time deadline) {
  Lock lock(mutex_);
  while (true) {
    WaitWhileStopped(lock, to);
    TOROID_RETURN_IF_ERROR(Alive(to));
    if (current(to)) {  // else a later launch takes the messages
      for (const auto& [ends, line] : lines_) {
        if (ends.first == to.identity.self) TOROID_RETURN_IF_ERROR(line.refused);
      }
      std::optional<PodMessage> message = Take(to);
      if (message.has_value()) return message;
    }
    if (!Wait(lock, deadline)) {
      WaitWhileStopped(lock, to);
      return std::nullopt;
    }
  }
}

absl::Time InProcessPodNetwork::State::LastHeard(const Launch& own, int64_t pod) {
  const std::lock_guard lock(mutex_);
  std::optional<absl::Time> quietest;
  for (const auto& [peer, member] : members_) {
    if (peer.pod != pod) continue;
    const Line& line = LineOf(peer, own.identity.self);
    if (!line.used && !LineOf(own.identity.self, peer).used) continue;
    if (member.launch == nullptr) return absl::InfinitePast();
    absl::Time heard = line.cut ? line.cut_at : absl::Now();
    if (!member.here) heard = std::min(heard, member.left);
    if (member.launch->stopped) heard = std::min(heard, member.launch->stopped_at);
    quietest = std::min(quietest.value_or(heard), heard);
  }
  return quietest.value_or(absl::InfinitePast());
}

namespace {

class InProcessPodLink : public PodLink {
 public:
  InProcessPodLink(std::shared_ptr<InProcessPodNetwork::State> state,
                   std::shared_ptr<Launch> launch)
      : state_(std::move(state)), launch_(std::move(launch)) {}
  ~InProcessPodLink() override { state_->Detach(*launch_); }

  const PodIdentity& identity() const override { return launch_->identity; }
  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override {
    return state_->Send(*launch_, to, std::move(message), deadline);
  }
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override {
    return state_->Receive(*launch_, deadline);
  }
  absl::Time LastHeard(int64_t pod) const override { return state_->LastHeard(*launch_, pod); }
  absl::Status Renew(Communicator&) override {
    state_->Renew(*launch_);
    return absl::OkStatus();
  }
  PodLinkCounters counters() const override { return state_->Counters(*launch_); }

 private:
  const std::shared_ptr<InProcessPodNetwork::State> state_;
  const std::shared_ptr<Launch> launch_;
};

}  // namespace

InProcessPodNetwork::InProcessPodNetwork(std::vector<PodRank> ranks, int64_t queue_bytes)
    : state_(std::make_shared<State>(std::move(ranks), queue_bytes)) {}
InProcessPodNetwork::~InProcessPodNetwork() = default;

absl::StatusOr<std::unique_ptr<PodLink>> InProcessPodNetwork::Attach(PodIdentity identity) {
  TOROID_ASSIGN_OR_RETURN(std::shared_ptr<Launch> launch, state_->Attach(std::move(identity)));
  return std::make_unique<InProcessPodLink>(state_, std::move(launch));
}

void InProcessPodNetwork::Cut(PodRank a, PodRank b) { state_->Cut(a, b, true); }
void InProcessPodNetwork::Heal(PodRank a, PodRank b) { state_->Cut(a, b, false); }
void InProcessPodNetwork::Drop(PodRank rank) { state_->Drop(rank); }
void InProcessPodNetwork::Stop(PodRank rank) { state_->Stop(rank, true); }
void InProcessPodNetwork::Continue(PodRank rank) { state_->Stop(rank, false); }

}  // namespace toroid
