#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/exchange_link_state.h"
#include "rpc/grpc_status.h"

namespace toroid::exchange {

constexpr absl::Duration kHelloLimit = absl::Seconds(15);
// Between signs of life.
constexpr absl::Duration kSign = absl::Milliseconds(250);

void Link::Lost(Peer& peer) {
  if (peer.up() || !peer.was_up) return;
  peer.was_up = false;
  peer.out.LineLost();
}

void Link::Acknowledged(Flow* flow, const wire::StreamAck& ack) {
  bool cancel = false;
  {
    const std::lock_guard lock(mutex_);
    if (flow->abandoned) return;
    Peer& peer = PeerOf(flow->peer);
    if (ack.has_hello()) {
      const PodIdentity other = FromProto(ack.hello());
      const Launch launch = LaunchOf(ack.hello());
      const bool newer = peer.takes.known && !(launch == peer.takes);
      if (other.self != flow->peer) {
        Refuse(flow->peer, absl::FailedPreconditionError(
                               absl::StrCat(ToString(other.self), " listens at ", peer.address,
                                            ", not ", ToString(flow->peer))));
      } else if ((newer && launch.epoch <= peer.takes.epoch) || launch.epoch < peer.sends.epoch) {
        cancel = true;  // an earlier launch still listens
      } else {
        if (newer) {
          peer.out.Restart();
          peer.came_up.assign(peer.came_up.size(), false);
          for (const auto& other_flow : peer.flows) {
            if (other_flow != nullptr && other_flow.get() != flow) other_flow->up = false;
          }
        }
        if (!newer) peer.out.LineFound();
        peer.takes = launch;
        flow->up = peer.was_up = peer.reached = true;
        if (peer.came_up[flow->index] && flow->index < options_.flows) ++counters_.reconnects;
        peer.came_up[flow->index] = true;
      }
    }
    if (flow->up) peer.heard = absl::Now();
    if (flow->up && !peer.out.Acknowledged(ack.received(), ack.taken())) {
      Refuse(flow->peer, absl::DataLossError(absl::StrCat(ToString(flow->peer),
                                                          " acknowledges what was never sent")));
    }
    changed_.notify_all();
    pump_.notify_all();
  }
  if (cancel) flow->context.TryCancel();
}

void Link::Written(Flow* flow, bool) {
  bool release = false;
  Work work;
  {
    const std::lock_guard lock(mutex_);
    flow->writing = false;
    release = flow->ended && std::exchange(flow->holding, false);
    Peer& peer = PeerOf(flow->peer);
    if (peer.line.has_value()) {
      pump_.notify_all();
    } else if (peer.refused.ok() && !peer.removed && !stopping_) {
      (void)PlanFrames(peer, absl::Now(), &work);  // here and now: no other thread has to wake
    }
  }
  if (release) flow->RemoveHold();
  if (!work.empty()) Do(std::move(work));
}

void Link::ReadsEnded(Flow* flow) {
  bool release = false;
  {
    const std::lock_guard lock(mutex_);
    flow->ended = true;
    flow->up = false;
    release = !flow->writing && std::exchange(flow->holding, false);
  }
  if (release) flow->RemoveHold();
}

void Link::Ended(Flow* flow, const grpc::Status& status) {
  const std::lock_guard lock(mutex_);
  Peer& peer = PeerOf(flow->peer);
  over_.push_back(std::move(peer.flows[flow->index]));
  peer.flows[flow->index] = nullptr;
  peer.out.FlowCut(flow->index);
  peer.trouble = FromGrpc(status);
  // Not for the line's sake, and so again and again.
  const bool for_good = peer.trouble.code() == absl::StatusCode::kFailedPrecondition ||
                        peer.trouble.code() == absl::StatusCode::kInvalidArgument;
  if (for_good && !flow->abandoned) {
    Refuse(flow->peer, peer.trouble);
  }
  if (peer.trouble.code() == absl::StatusCode::kUnavailable && !flow->abandoned) {
    Doubt(peer, flow->peer);
  }
  Lost(peer);
  peer.next_dial = std::max(peer.next_dial, absl::Now() + kRedial);
  --flows_alive_;
  changed_.notify_all();
  pump_.notify_all();
}

// When something is to be done for this peer again.
absl::Time Link::Plan(Peer& peer, PodRank rank, absl::Time now, Work* work) {
  absl::Time next = absl::InfiniteFuture();
  if (!peer.wanted || peer.removed || !peer.refused.ok()) return next;
  if (peer.line.has_value()) {
    if (peer.line->Cut(now)) {
      for (const auto& flow : peer.flows) {
        if (flow != nullptr) work->cancel.push_back(flow);
      }
    }
    next = peer.line->next_cut();
  }
  for (size_t i = 0; i < peer.flows.size(); ++i) {
    std::shared_ptr<Flow>& flow = peer.flows[i];
    if (flow != nullptr) {
      if (flow->up || flow->ended) continue;
      if (now >= flow->dialled + kHelloLimit) work->cancel.push_back(flow);
      next = std::min(next, flow->dialled + kHelloLimit);
    } else if (now >= peer.next_dial) {
      flow = std::make_shared<Flow>(this, rank, static_cast<int>(i));
      wire::StreamFrame hello;
      *hello.mutable_hello() = Card();
      flow->out = ToBytes(hello);
      ++flows_alive_;
      work->begin.emplace_back(flow, peer.stubs[i]);
    } else {
      next = std::min(next, peer.next_dial);
    }
  }
  const std::shared_ptr<Flow>& pulse = peer.flows.back();
  if (pulse != nullptr && pulse->up) {
    if (now >= peer.next_sign) {
      peer.next_sign = now + kSign;
      if (!std::exchange(pulse->writing, true)) work->signs.push_back(pulse);
    }
    next = std::min(next, peer.next_sign);
  }
  return std::min(next, PlanFrames(peer, now, work));
}

absl::Time Link::PlanFrames(Peer& peer, absl::Time now, Work* work) {
  absl::Time next = absl::InfiniteFuture();
  for (const std::shared_ptr<Flow>& flow : peer.flows) {
    if (flow == nullptr || !flow->up || flow->index == options_.flows) continue;
    const bool free = peer.line.has_value() ? peer.line->free_at() <= now : !flow->writing;
    if (free && peer.out.HasFrame()) {
      PodFrame frame = peer.out.Next(flow->index);
      const int64_t bytes = frame.bytes();
      const absl::Time at = peer.line.has_value() ? peer.line->Send(bytes, now) : now;
      flow->delayed.push_back({at, std::move(frame)});
    }
    if (!flow->delayed.empty() && !flow->writing) {
      if (flow->delayed.front().at <= now) {
        flow->writing = true;
        work->write.emplace_back(flow, std::move(flow->delayed.front().frame));
        flow->delayed.pop_front();
      } else {
        next = std::min(next, flow->delayed.front().at);
      }
    }
  }
  if (peer.line.has_value() && peer.out.HasFrame()) {
    next = std::min(next, std::max(peer.line->free_at(), now + absl::Microseconds(50)));
  }
  return next;
}

void Link::Do(Work work) {
  for (const auto& [flow, stub] : work.begin) flow->Begin(*stub);
  int64_t bytes = 0;
  for (auto& [flow, frame] : work.write) {
    frame.job = identity_.job;
    frame.words.from = identity_.self;
    frame.words.epoch = identity_.epoch;
    flow->out = ToBytes(frame);
    bytes += static_cast<int64_t>(flow->out.Length());
  }
  {
    const std::lock_guard lock(mutex_);
    counters_.wire_sent += bytes;  // before another rank can have them
  }
  for (auto& [flow, frame] : work.write) flow->StartWrite(&flow->out);
  for (const auto& flow : work.signs) {
    wire::StreamFrame sign;
    sign.set_alive(true);
    flow->out = ToBytes(sign);
    flow->StartWrite(&flow->out);
  }
  for (const auto& flow : work.cancel) flow->context.TryCancel();
}

void Link::Pump() {
  Lock lock(mutex_);
  while (!stopping_) {
    Work work;
    work.over.swap(over_);
    const absl::Time now = absl::Now();
    absl::Time next = absl::InfiniteFuture();
    for (auto& [rank, peer] : peers_) next = std::min(next, Plan(peer, rank, now, &work));
    if (!work.empty()) {
      lock.unlock();
      Do(std::move(work));
      lock.lock();
    } else if (next == absl::InfiniteFuture()) {
      pump_.wait(lock);
    } else {
      pump_.wait_until(lock, absl::ToChronoTime(next));
    }
  }
}

}  // namespace toroid::exchange
