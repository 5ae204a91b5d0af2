// PodMail: the post of one rank with ranks of the other pods, so that neither sending nor receiving
// holds up its computation.
//
// Three threads: one does the work that it is given in order (what reads the device, encodes and
// posts), one sends what was posted, one takes what arrives and keeps it under its key until it is
// taken. What is kept is bounded: a peer cannot be further ahead than the exchange lets it, and
// what claims to be is an error. A fourth sends what is large and must not hold up the rest. The
// first error of the link or of any work stays.
//
// Thread-safe, but for Await: that is collective over the rank's own world, from the thread that
// makes its other collective calls.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/communicator.h"
#include "parallel/membership_view.h"
#include "parallel/pod_link.h"

namespace toroid {

class ProgressBoard;

// Rank 0's view on all ranks. Collective; errors are the world's.
absl::StatusOr<MembershipView> ShareView(Communicator& world, const MembershipView& view);

class PodMail {
  using Clock = std::chrono::steady_clock;

 public:
  // What tells messages apart.
  struct Key {
    int32_t kind = 0;
    int64_t step = 0;
    int32_t fragment = 0;
    PodRank from;
    auto operator<=>(const Key&) const = default;
  };
  // Whether a wait shall end: kIfAway, if the pod that is missing is not to be reached.
  enum class Interrupt { kNo, kIfAway, kNow };
  struct Watch {
    ProgressBoard* board = nullptr;  // may be null, as all of these
    // Asked of rank 0 while it waits: ends the wait with Cancelled.
    std::function<Interrupt()> interrupted;
    // A sentence for the user: who is waited for.
    std::function<void(const std::string&)> note;
    // Asked on rank 0, by several threads: the newest view of who takes part.
    std::function<std::optional<MembershipView>()> view;
    // Told on rank 0: while a pod is waited for, one of the view says nothing, or a rank of it, to
    // any rank here. Again and again while it does not.
    std::function<void(int64_t pod)> on_silent;
    // The same of a pod that is heard, but not where the others wait for it, which they have done
    // for so many seconds (PodSwap::Gather).
    std::function<void(int64_t pod, double seconds)> on_slow;
  };

  // on_view is called on the receiving thread of rank 0, once for each view that it hears of, which
  // is in force later. `link` outlives this. The launches of `view` have been taken in, unless
  // `joins`: then all that views have take part for this pod, until Admit.
  PodMail(PodLink& link, MembershipView view, Watch watch,
          std::function<void(const MembershipView&)> on_view, bool joins = false);
  // Waits, some seconds at most, until the work that was given is done and what was posted is with
  // the link, unless there was an error.
  ~PodMail();

  // Runs on the working thread, after what was given before.
  void Do(std::function<absl::Status()> work);
  // Sends, after what was posted before.
  void Post(PodRank to, PodMessage message);
  // The same, beside what is posted: neither waits for the other. Counted apart.
  void PostAside(PodRank to, PodMessage message);
  // Until all work given so far is done, or there was an error. What it posted may still be on its
  // way.
  void FinishWork();

  // The step of what a rank sends first of all. To come from a rank that was heard before it means
  // that its pod was launched anew: an error, once Accept was called.
  static constexpr int64_t kBeginning = -1;
  // Messages of steps below `oldest` are of no use any more: what is kept or comes of them is
  // dropped and counted. One above `newest` is an error.
  void Accept(int64_t oldest, int64_t newest);
  // What comes of this kind from now on is of no interest, and no mistake.
  void Ignore(int32_t kind);
  bool Has(const Key& key) const;
  std::optional<SharedBytes> Look(const Key& key) const;  // its payload, if it is here
  // REQUIRES Has.
  PodMessage Take(const Key& key);

  // Waits until missing(), which is asked after each change and may do work, says -1, else a pod
  // that is waited for; `what` is waited for, "the gradient of step 7". Returns the same on all
  // ranks of `world`: OK; the link's error; Cancelled once rank 0 is interrupted; Aborted when rank
  // 0 hears of a newer view, which view() is then. Waits for a pod that is away for as long as it
  // takes: the board ticks meanwhile, and rank 0 says so now and then.
  absl::Status Await(Communicator& world, absl::string_view what,
                     const std::function<int64_t()>& missing);
  // Of Await's errors: the newer view, under which to wait anew.
  static bool IsNewerView(const absl::Status& status);
  // Who takes part. What others send is dropped and counted, but for launches that are newer than
  // the ones of them that were taken in: that is kept until they are, too. What is sent to others
  // goes nowhere.
  MembershipView view() const;
  // Of a pod, the last launch that was taken in; 0: none.
  uint64_t LaunchOf(int64_t pod) const;
  // From here on these launches, by pod, have been taken in, once rank 0 has heard of view `number`
  // or a newer one. Messages of launches before them are dropped. Collective; errors as Await's,
  // Unavailable: the newest view has this launch no more.
  absl::Status Admit(Communicator& world, const std::map<int64_t, uint64_t>& launches,
                     uint64_t number);
  // All that the view in force has, those too that were not taken in. The same on all ranks.
  const MembershipView& heard() const { return heard_; }
  // A change for whoever awaits one: work has come to something.
  void Changed();

  absl::Status status() const;
  void Fail(const absl::Status& status);
  // In Await, of this rank, without what missing() took.
  double waited_seconds() const { return waited_seconds_; }
  int64_t late() const { return late_.load(); }  // messages dropped
  // Of payloads that wait to be sent or taken, and of what its owner keeps to be sent (Hold), the
  // most ever. Of those that were posted aside: all of them.
  int64_t queued_bytes_peak() const;
  int64_t aside_bytes() const;
  void Hold(int64_t bytes);  // so many more; below 0: fewer
  PodLink& link() { return link_; }

 private:
  // What a thread does one after the other.
  struct Queue {
    std::deque<std::function<absl::Status()>> items;
    bool busy = false;
    bool idle() const { return items.empty() && !busy; }
  };
  void Give(Queue& queue, std::function<absl::Status()> item);
  void Work(Queue& queue);
  absl::Status Send(PodRank to, const PodMessage& message);
  void Receive();
  void TellView(uint64_t& told);
  void Keep(PodMessage message);
  void CountQueued(int64_t bytes);
  bool Awaits(int64_t pod, uint64_t launch) const;
  std::map<Key, PodMessage>::iterator Drop(std::map<Key, PodMessage>::iterator kept);
  int64_t AwaitSlice(const std::function<int64_t()>& missing);
  absl::Status Install();
  Interrupt Asked() const;
  MembershipView TakingPart(const MembershipView& heard) const;
  enum Hearing { kHeard, kQuiet, kGone };
  Hearing HearingOf(int64_t pod, int64_t awaited) const;
  void TellSilent(int64_t pod);

  PodLink& link_;
  const Watch watch_;
  const std::function<void(const MembershipView&)> on_view_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Queue work_, sends_, aside_;  // guarded by mutex_, as all below
  bool stop_ = false;
  MembershipView view_;
  // The launches that were taken in last, by pod; none: this pod joins.
  std::optional<std::map<int64_t, uint64_t>> taken_in_;
  std::set<int32_t> ignored_;
  std::map<Key, PodMessage> kept_;
  int64_t queued_bytes_ = 0, queued_bytes_peak_ = 0, aside_bytes_ = 0;
  int64_t oldest_ = INT64_MIN, newest_ = INT64_MAX;
  int64_t changes_ = 0;
  absl::Status status_;

  std::atomic<int64_t> late_ = 0;
  double waited_seconds_ = 0, worked_seconds_ = 0;  // of all waits; in missing(), of this one
  MembershipView heard_;
  std::map<int64_t, Clock::time_point> told_silent_;  // by pod, when last
  std::thread worker_, sender_, aside_sender_, receiver_;
};

}  // namespace toroid
