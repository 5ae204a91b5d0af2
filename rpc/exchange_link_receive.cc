#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "rpc/exchange_link_state.h"

namespace toroid::exchange {

// Frames that come spoilt in one place of a stream: a line that spoils as many is none.
constexpr int kMostSpoilt = 3;

std::shared_ptr<Arrival> Link::NewArrival() {
  const auto arrival = std::make_shared<Arrival>(this);
  const std::lock_guard lock(mutex_);
  arrivals_[arrival.get()] = arrival;
  return arrival;
}

absl::Status Link::Hello(Arrival* arrival, const wire::ExchangeIdentity& card) {
  const PodIdentity other = FromProto(card);
  TOROID_RETURN_IF_ERROR(Compare(other));
  Peer& peer = PeerOf(other.self);
  const Launch launch = LaunchOf(card);
  if (peer.sends.known && !(peer.sends == launch)) {
    if (launch.epoch <= peer.sends.epoch) {
      return absl::FailedPreconditionError(absl::StrCat(
          ToString(other.self), " comes with epoch ", launch.epoch,
          ", a launch before it had epoch ", peer.sends.epoch, ": each launch needs a higher one"));
    }
    const auto stale = [&](const Here& here) { return here.from == other.self; };
    counters_.stale_dropped += std::count_if(inbox_.begin(), inbox_.end(), stale);
    inbox_.erase(std::remove_if(inbox_.begin(), inbox_.end(), stale), inbox_.end());
    peer.in = PodReceiveQueue(options_.queue_bytes);
    peer.spoilt = 0;
    peer.forbids = absl::OkStatus();
    if (peer.takes.known && !(peer.takes == launch)) peer.out.LineLost();
  }
  TOROID_RETURN_IF_ERROR(peer.forbids);
  peer.sends = launch;
  arrival->from = other.self;
  arrival->launch = launch;
  peer.arrivals.insert(arrivals_.at(arrival));
  peer.was_up = true;
  return absl::OkStatus();
}

// Whose frame it is, as its stream's hello said.
absl::Status Link::OfItsStream(const Arrival& arrival, const PodFrame& frame) {
  const auto other = [&](absl::string_view name, const auto& its, const auto& of_stream) {
    return absl::StrCat("frame ", frame.number, " is of ", name, " ", its, ", its stream of ",
                        of_stream);
  };
  if (frame.job != identity_.job) {
    return absl::InvalidArgumentError(other("job", frame.job, identity_.job));
  }
  if (frame.words.from.pod != arrival.from.pod) {
    return absl::InvalidArgumentError(other("pod", frame.words.from.pod, arrival.from.pod));
  }
  if (frame.words.epoch == arrival.launch.epoch) return absl::OkStatus();
  const std::string said = other("epoch", frame.words.epoch, arrival.launch.epoch);
  if (frame.words.epoch > arrival.launch.epoch) return absl::InvalidArgumentError(said);
  ++counters_.stale_dropped;
  return absl::FailedPreconditionError(said);
}

absl::Status Link::TakeFrame(const Arrival& arrival, Peer& peer, const PodFrame& frame) {
  TOROID_RETURN_IF_ERROR(OfItsStream(arrival, frame));
  const uint64_t before = peer.in.received();
  TOROID_RETURN_IF_ERROR(peer.in.Take(frame).status());
  if (peer.in.received() > before) peer.spoilt = 0;
  while (std::optional<PodMessage> message = peer.in.PopWhole()) {
    message->from = arrival.from;
    message->epoch = arrival.launch.epoch;
    inbox_.push_back({arrival.from, arrival.launch, *std::move(message)});
  }
  return absl::OkStatus();
}

// What came whole. It is a sign of life only once it is taken.
absl::Status Link::Take(Arrival* arrival, const ReceivedFrame& received) {
  const bool hello = received.hello.has_value();
  if (hello == arrival->launch.known) {
    return absl::InvalidArgumentError("broken stream: hello comes first, and once");
  }
  wire::StreamAck ack;
  if (hello) {
    const absl::Status met = Hello(arrival, *received.hello);
    arrival->refused = !met.ok();
    TOROID_RETURN_IF_ERROR(met);
    *ack.mutable_hello() = Card();
  }
  Peer& peer = PeerOf(arrival->from);
  if (!(arrival->launch == peer.sends)) {
    if (received.frame.offset == 0 && !received.alive) ++counters_.stale_dropped;
    return absl::FailedPreconditionError(
        absl::StrCat("a later launch of ", ToString(arrival->from), " is there"));
  }
  TOROID_RETURN_IF_ERROR(peer.forbids);
  if (!hello && !received.alive) {
    TOROID_RETURN_IF_ERROR(TakeFrame(*arrival, peer, received.frame));
  }
  peer.heard = absl::Now();
  ack.set_received(peer.in.received());
  ack.set_taken(peer.in.taken());
  arrival->Push(std::move(ack));
  return absl::OkStatus();
}

// What the sender is told. DataLoss is the line's doing, and it sends again; anything else would be
// refused again, and both sides know so.
absl::Status Link::NotTaken(Arrival* arrival, const absl::Status& why) {
  if (!arrival->launch.known) return why;
  Peer& peer = PeerOf(arrival->from);
  if (!(arrival->launch == peer.sends) || absl::IsFailedPrecondition(why)) return why;
  const bool spoilt = absl::IsDataLoss(why);
  if (spoilt && ++peer.spoilt < kMostSpoilt) return why;
  arrival->refused = true;
  if (!peer.forbids.ok()) return peer.forbids;
  const std::string remedy =
      spoilt ? absl::StrCat(", ", kMostSpoilt, " times: test memory and network of both hosts")
             : ": start all pods with the same build";
  peer.forbids = absl::InvalidArgumentError(
      absl::StrCat(ToString(identity_.self), " takes nothing more of ", ToString(arrival->from),
                   ": ", why.message(), remedy));
  Refuse(arrival->from, peer.forbids);
  return peer.forbids;
}

absl::Status Link::Arrived(Arrival* arrival, grpc::ByteBuffer& bytes) {
  const absl::StatusOr<ReceivedFrame> received = FromBytes(bytes);
  absl::Status whole = received.status();
  if (whole.ok() && !received->hello && !received->alive &&
      FrameChecksum(received->frame) != received->crc32c) {
    whole = absl::DataLossError(absl::StrCat("wrong checksum: frame ", received->frame.number));
  }
  const std::lock_guard lock(mutex_);
  const absl::Status taken = whole.ok() ? Take(arrival, *received) : whole;
  changed_.notify_all();
  return taken.ok() ? taken : NotTaken(arrival, taken);
}

void Link::Ended(Arrival* arrival) {
  std::shared_ptr<Arrival> last;  // destroyed without the mutex
  const std::lock_guard lock(mutex_);
  last = arrivals_.at(arrival);
  arrivals_.erase(arrival);
  if (arrival->launch.known) {
    Peer& peer = PeerOf(arrival->from);
    peer.arrivals.erase(last);
    Lost(peer);
  }
  changed_.notify_all();
}

}  // namespace toroid::exchange
