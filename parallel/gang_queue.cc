#include "parallel/gang_queue.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace toroid {

GangQueue::GangQueue(int preparers, Order order)
    : most_preparers_(size_t(preparers)), order_(order) {}

GangQueue::~GangQueue() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = ending_ = true;
    arrived_.notify_all();
    ready_.notify_all();
  }
  for (std::thread& preparer : preparers_) preparer.join();
}

// A gang whose turn it is already goes to Next alone, which prepares it without another thread
// being woken. Nobody is woken only to wait for the lock.
void GangQueue::Push(Gang gang) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto place = entries_.end();
  if (order_ == Order::kStamped) {
    TOROID_CHECK_GE(gang.number, next_);
    place = std::find_if(entries_.begin(), entries_.end(),
                         [&](const Entry& entry) { return entry.gang.number >= gang.number; });
    TOROID_CHECK(place == entries_.end() || place->gang.number != gang.number);
  }
  const bool ahead = gang.ahead;
  const auto entry = entries_.insert(place, Entry{std::move(gang)});
  const bool at_turn = awaited_ && entry == entries_.begin() && Here();
  if (!at_turn && ahead && preparers_.size() < most_preparers_ && !ending_) {
    const auto waiting = std::count_if(entries_.begin(), entries_.end(),
                                       [this](const Entry& e) { return MayBePrepared(e); });
    if (size_t(waiting) > idle_) preparers_.emplace_back([this] { PrepareAhead(); });
  }
  lock.unlock();
  if (at_turn) {
    ready_.notify_one();
  } else if (ahead) {
    arrived_.notify_one();
  }
}

bool GangQueue::Here() const {
  return !entries_.empty() && (order_ == Order::kArrival || entries_.front().gang.number == next_);
}

std::optional<GangQueue::Gang> GangQueue::Next() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closed_) {
    const bool here = Here();
    if (here && entries_.front().state == State::kWaits) Prepare(lock, entries_.front());
    if (closed_) break;
    if (here && entries_.front().state == State::kReady) {
      Gang gang = std::move(entries_.front().gang);
      entries_.pop_front();
      ++next_;
      return gang;
    }
    awaited_ = true;
    ready_.wait(lock);
    awaited_ = false;
  }
  return std::nullopt;
}

bool GangQueue::Ready() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !closed_ && Here() && entries_.front().state == State::kReady;
}

void GangQueue::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  ready_.notify_all();
}

// The lock is free meanwhile; entries stay where they are, and only Next takes one away.
void GangQueue::Prepare(std::unique_lock<std::mutex>& lock, Entry& entry) {
  entry.state = State::kPreparing;
  lock.unlock();
  if (entry.gang.prepare) entry.gang.prepare();
  lock.lock();
  entry.state = State::kReady;
}

// By a preparer.
bool GangQueue::MayBePrepared(const Entry& entry) const {
  const bool taken = awaited_ && &entry == &entries_.front() && Here();  // by Next, which is woken
  return entry.state == State::kWaits && entry.gang.ahead && !taken;
}

void GangQueue::PrepareAhead() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ending_) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [this](const Entry& entry) { return MayBePrepared(entry); });
    if (found == entries_.end()) {
      ++idle_;
      arrived_.wait(lock);
      --idle_;
      continue;
    }
    Prepare(lock, *found);
    if (found == entries_.begin()) ready_.notify_one();
  }
}

}  // namespace toroid
