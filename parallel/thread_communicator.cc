#include "parallel/thread_communicator.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/ordered_communicator.h"
#include "parallel/reduction.h"

namespace toroid {
namespace {

// What one rank brings to a meeting (a verb of all ranks).
struct alignas(64) Place {
  const char* verb = nullptr;
  const void* in = nullptr;
  void* out = nullptr;
  int64_t bytes = 0;
};

// Messages from one rank to another, one at a time: the sender waits until it is taken. `posted` is
// the number of the message that lies here, its negative once the receiver has begun to take it, or
// kWithdrawn for ever: a sender that gives up must know that nobody will read its memory.
constexpr int64_t kWithdrawn = std::numeric_limits<int64_t>::min();
struct alignas(64) Mailbox {
  std::atomic<int64_t> posted{0}, taken{0};
  const void* data = nullptr;
  int64_t bytes = 0;
};

// The receiver's: whether message `number` lies here; it may then be read, and must be.
bool Take(Mailbox& box, int64_t number) {
  int64_t expected = number;
  return box.posted.compare_exchange_strong(expected, -number, std::memory_order_acq_rel);
}
// The sender's: false: the receiver is at it.
bool Withdraw(Mailbox& box, int64_t number) {
  int64_t expected = number;
  return box.posted.compare_exchange_strong(expected, kWithdrawn, std::memory_order_acq_rel);
}

// A meeting has three gates: all have arrived (places are readable), all have done their first
// share of the work, all have done their second (places and inputs may be reused). A gate of
// meeting m is open once its count has reached (m + 1) size, so nothing is ever reset, and as no
// rank enters a meeting before the last gate of the one before, one place per rank is enough.
//
// A rank gives up at the first gate only, and shuts it: either all ranks pass it or none, and no
// rank reads the place of one that has gone. Behind it the others are at work and will be there,
// unless one has left.
constexpr int kGates = 3;
constexpr int64_t kShut = std::numeric_limits<int64_t>::min();

struct Group {
  Group(std::vector<int> world_ranks, std::shared_ptr<ThreadWorldMonitor> watcher)
      : size(static_cast<int>(world_ranks.size())),
        members(std::move(world_ranks)),
        monitor(std::move(watcher)),
        places(size),
        mailboxes(size * size),
        left(size) {}

  const int size;
  const std::vector<int> members;  // world ranks
  const std::shared_ptr<ThreadWorldMonitor> monitor;
  std::vector<Place> places;
  std::vector<Mailbox> mailboxes;  // [from * size + to]
  std::atomic<int64_t> gates[kGates] = {};
  std::vector<std::atomic<bool>> left;
  std::atomic<int> first_left{-1};

  // Groups split from this one, made by the first rank that asks and forgotten after the last.
  struct Child {
    std::shared_ptr<Group> group;
    int taken = 0;
  };
  std::mutex mutex;
  std::map<std::pair<int64_t, int>, Child> children;  // by (number of the split, color)
};

std::vector<int> RanksOfColor(int size, int color, const Communicator::RankFunction& color_of,
                              const Communicator::RankFunction& key_of) {
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) {
    if (color_of(r) == color) ranks.push_back(r);
  }
  std::stable_sort(ranks.begin(), ranks.end(), [&](int a, int b) { return key_of(a) < key_of(b); });
  return ranks;
}

class ThreadCommunicator final : public OrderedCommunicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : OrderedCommunicator(rank, group->size), group_(std::move(group)) {
    received_.resize(size());
    sent_.resize(size());
  }
  ~ThreadCommunicator() override {
    int nobody = -1;
    group_->first_left.compare_exchange_strong(nobody, rank());
    group_->left[rank()].store(true, std::memory_order_release);
  }

  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override;

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override;
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each, DType type) override;
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override;
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override;
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override;
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override;
  void DoBarrier(Stream s) override;

 private:
  // A verb of all ranks. `first` runs once all ranks have brought their places, `second` once all
  // have run `first`; either may be null.
  void Meet(Stream s, const Place& place, std::function<void()> first,
            std::function<void()> second);
  absl::Status Agreement() const;
  // Of the first gate of a meeting: it stays closed from now on. False: it had opened.
  bool Shut(int64_t open);
  // True when the wait is over without what it waits for: the world was abandoned, or `awaited`
  // (any rank if negative) has left. The error is kept.
  bool Hopeless(int awaited);
  void Enter(const char* verb) { group_->monitor->Enter(group_->members[rank()], verb); }
  const void* InputOf(int r) const { return group_->places[r].in; }

  const std::shared_ptr<Group> group_;
  int64_t meetings_ = 0, splits_ = 0;     // meetings_: by the running step only
  std::vector<int64_t> received_, sent_;  // messages by peer; by the running step only
};

std::unique_ptr<Communicator> ThreadCommunicator::Split(const RankFunction& color,
                                                        const RankFunction& key) {
  const int mine = color(rank());
  const std::vector<int> ranks = RanksOfColor(size(), mine, color, key);
  const int place = static_cast<int>(std::find(ranks.begin(), ranks.end(), rank()) - ranks.begin());
  const std::pair<int64_t, int> name = {splits_++, mine};
  if (ranks.size() == 1) return std::make_unique<SelfCommunicator>();
  std::lock_guard<std::mutex> lock(group_->mutex);
  Group::Child& child = group_->children[name];
  if (child.group == nullptr) {
    std::vector<int> members;
    for (int r : ranks) members.push_back(group_->members[r]);
    child.group = std::make_shared<Group>(std::move(members), group_->monitor);
  }
  std::shared_ptr<Group> group = child.group;
  if (++child.taken == group->size) group_->children.erase(name);
  return std::make_unique<ThreadCommunicator>(std::move(group), place);
}

bool ThreadCommunicator::Hopeless(int awaited) {
  if (group_->monitor->abandoned()) return Fail(absl::AbortedError(group_->monitor->reason()));
  const int first = group_->first_left.load(std::memory_order_acquire);
  const int gone = awaited < 0                                             ? first
                   : group_->left[awaited].load(std::memory_order_acquire) ? awaited
                                                                           : -1;
  if (gone < 0) return false;
  return Fail(absl::UnavailableError(absl::StrCat("rank ", gone, " left the world")));
}

absl::Status ThreadCommunicator::Agreement() const {
  const Place& mine = group_->places[rank()];
  for (int r = 0; r < size(); ++r) {
    const Place& other = group_->places[r];
    if (std::strcmp(other.verb, mine.verb) != 0 || other.bytes != mine.bytes) {
      return absl::InternalError(absl::StrCat("rank ", rank(), " is in ", mine.verb, " of ",
                                              mine.bytes, " bytes, rank ", r, " in ", other.verb,
                                              " of ", other.bytes));
    }
  }
  return absl::OkStatus();
}

void ThreadCommunicator::Meet(Stream s, const Place& place, std::function<void()> first,
                              std::function<void()> second) {
  Enqueue(s, [this, place, first = std::move(first), second = std::move(second),
              next_gate = -1]() mutable {
    auto& gates = group_->gates;
    const int64_t open = (meetings_ + 1) * size();
    if (next_gate < 0) {
      Enter(place.verb);
      group_->places[rank()] = place;
      gates[0].fetch_add(1, std::memory_order_acq_rel);
      next_gate = 0;
    }
    while (next_gate < kGates) {
      if (gates[next_gate].load(std::memory_order_acquire) < open) {
        const bool left = group_->first_left.load() >= 0;
        const bool over = left || (next_gate == 0 && group_->monitor->abandoned());
        // A rank that left after its part of this meeting has opened all its gates: look again.
        if (!over || gates[next_gate].load(std::memory_order_acquire) >= open) return false;
        if (next_gate == 0 && !Shut(open)) continue;
        Hopeless(-1);
        break;
      }
      if (next_gate == 0) {
        const absl::Status agreed = Agreement();
        if (!agreed.ok()) Fail(agreed);
        if (agreed.ok() && first) first();
      } else if (next_gate == 1 && second && !failed()) {
        second();
      }
      if (++next_gate < kGates) gates[next_gate].fetch_add(1, std::memory_order_acq_rel);
    }
    Enter(nullptr);
    ++meetings_;
    return true;
  });
}

bool ThreadCommunicator::Shut(int64_t open) {
  int64_t count = group_->gates[0].load(std::memory_order_acquire);
  while (count < open) {
    if (group_->gates[0].compare_exchange_weak(count, kShut, std::memory_order_acq_rel))
      return true;
  }
  return false;
}

void ThreadCommunicator::DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) {
  // Each rank sums its block of all inputs into its own input, where nobody else reads; then it
  // copies the other blocks from those who summed them.
  const auto first = [=, this] {
    const ReductionBlock block = BlockOf(rank(), size(), count);
    const int64_t begin = RowBytes(type, block.begin);
    std::vector<const void*> in;
    for (int r = 0; r < size(); ++r) in.push_back(static_cast<const char*>(InputOf(r)) + begin);
    ReduceInRankOrder(in, static_cast<char*>(x) + begin, block.count, type, op);
  };
  const auto second = [=, this] {
    for (int r = 0; r < size(); ++r) {
      const ReductionBlock block = BlockOf(r, size(), count);
      const int64_t begin = RowBytes(type, block.begin);
      if (r == rank() || block.count == 0) continue;
      std::memcpy(static_cast<char*>(x) + begin, static_cast<const char*>(InputOf(r)) + begin,
                  RowBytes(type, block.count));
    }
  };
  Meet(s, {"AllReduce", x, x, RowBytes(type, count)}, first, second);
}

void ThreadCommunicator::DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                                         DType type) {
  const int64_t bytes = RowBytes(type, count_each);
  Meet(
      s, {"ReduceScatter", x, out, bytes},
      [=, this] {
        std::vector<const void*> in;
        for (int r = 0; r < size(); ++r) {
          in.push_back(static_cast<const char*>(InputOf(r)) + rank() * bytes);
        }
        ReduceInRankOrder(in, out, count_each, type, ReduceOp::kSum);
      },
      nullptr);
}

void ThreadCommunicator::DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) {
  Meet(
      s, {"AllGather", x, out, bytes_each},
      [=, this] {
        for (int r = 0; r < size(); ++r) {
          char* to = static_cast<char*>(out) + r * bytes_each;
          if (to != InputOf(r)) std::memcpy(to, InputOf(r), bytes_each);
        }
      },
      nullptr);
}

void ThreadCommunicator::DoBroadcast(Stream s, void* x, int64_t bytes, int root) {
  Meet(
      s, {"Broadcast", x, x, bytes},
      [=, this] {
        if (rank() != root) std::memcpy(x, InputOf(root), bytes);
      },
      nullptr);
}

void ThreadCommunicator::DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) {
  Meet(
      s, {"AllToAll", x, out, bytes_each},
      [=, this] {
        for (int r = 0; r < size(); ++r) {
          std::memcpy(static_cast<char*>(out) + r * bytes_each,
                      static_cast<const char*>(InputOf(r)) + rank() * bytes_each, bytes_each);
        }
      },
      nullptr);
}

void ThreadCommunicator::DoBarrier(Stream s) {
  Meet(s, {"Barrier", nullptr, nullptr, 0}, nullptr, nullptr);
}

void ThreadCommunicator::DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to,
                                    void* recv, int64_t recv_bytes, int from) {
  Enqueue(s, [=, this, started = false, to_send = send_bytes > 0,
              to_receive = recv_bytes > 0]() mutable {
    Mailbox* out = send_bytes > 0 ? &group_->mailboxes[rank() * size() + to] : nullptr;
    Mailbox* in = recv_bytes > 0 ? &group_->mailboxes[from * size() + rank()] : nullptr;
    if (!started) {
      started = true;
      Enter("SendRecv");
      if (out != nullptr) {  // empty: the verb that filled it before waited until it was taken
        out->data = send;
        out->bytes = send_bytes;
        out->posted.store(++sent_[to], std::memory_order_release);
      }
    }
    if (to_receive && Take(*in, received_[from] + 1)) {
      if (in->bytes == recv_bytes) {
        std::memcpy(recv, in->data, recv_bytes);
      } else {
        Fail(absl::InternalError(absl::StrCat("rank ", rank(), " expected ", recv_bytes,
                                              " bytes from rank ", from, ", which sent ",
                                              in->bytes)));
      }
      in->taken.store(++received_[from], std::memory_order_release);
      to_receive = false;
    }
    if (to_send && out->taken.load(std::memory_order_acquire) == sent_[to]) to_send = false;
    if (to_send || to_receive) {
      // A peer that left after its part has posted and taken: look again, by another call.
      const bool abandoned = group_->monitor->abandoned();
      const int awaited = to_receive ? from : to;
      const bool gone = group_->left[awaited].load(std::memory_order_acquire);
      const bool over = to_receive ? in->posted.load(std::memory_order_acquire) > received_[from]
                                   : out->taken.load(std::memory_order_acquire) == sent_[to];
      if ((!abandoned && !gone) || over) return false;
      if (to_send && !Withdraw(*out, sent_[to])) return false;
      Hopeless(awaited);
    }
    Enter(nullptr);
    return true;
  });
}

}  // namespace

std::string ThreadWorldMonitor::VerbOf(int rank) const {
  const char* verb = verbs_[rank].load(std::memory_order_relaxed);
  return verb == nullptr ? "" : verb;
}

void ThreadWorldMonitor::Abandon(const std::string& reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (reason_.empty()) reason_ = reason;
  abandoned_.store(true, std::memory_order_release);
}

std::string ThreadWorldMonitor::reason() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return reason_;
}

std::vector<std::unique_ptr<Communicator>> NewThreadWorld(
    int size, std::shared_ptr<ThreadWorldMonitor>* monitor) {
  TOROID_CHECK_GT(size, 0);
  std::vector<int> members;
  for (int r = 0; r < size; ++r) members.push_back(r);
  auto watcher = std::make_shared<ThreadWorldMonitor>(size);
  auto group = std::make_shared<Group>(std::move(members), watcher);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<ThreadCommunicator>(group, r));
  if (monitor != nullptr) *monitor = std::move(watcher);
  return ranks;
}

}  // namespace toroid
