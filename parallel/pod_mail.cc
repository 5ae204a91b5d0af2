#include "parallel/pod_mail.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/progress_board.h"

namespace toroid {
namespace {

// A rank that waits looks up so often: whether others have an error, whether the run shall end.
constexpr auto kSlice = std::chrono::milliseconds(200);
// The user hears of a wait after so long, and again after twice as long.
constexpr double kPatienceSeconds = 5;
// A pod that was not heard of for so long is away.
constexpr absl::Duration kAway = absl::Seconds(2);
// One that was not heard of for so long, while it was waited for, is told of as silent. Lines that
// are idle beat four times a second.
constexpr absl::Duration kSilent = absl::Seconds(1);
// A full queue is tried again after so long, unless its pod takes part no more.
constexpr absl::Duration kSend = absl::Milliseconds(250);
// At the end of a run, for what was posted to be with the link.
constexpr auto kFlush = std::chrono::seconds(10);
// A view that is due is looked for so often.
constexpr auto kPoll = std::chrono::milliseconds(10);
// The receiving thread looks so often whether it shall end.
constexpr absl::Duration kReceive = absl::Milliseconds(50);
constexpr char kNewerView[] = "toroid.newer_view";  // payload of a status

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

absl::Status NewerView(uint64_t number) {
  absl::Status newer = absl::AbortedError(absl::StrCat("the job's pods changed: view ", number));
  newer.SetPayload(kNewerView, absl::Cord());
  return newer;
}

std::string SentenceOf(absl::string_view what, int64_t pod, double seconds, absl::Time heard) {
  std::string sentence =
      absl::StrCat("waits for pod ", pod, " for ", int64_t(seconds), " s: ", what);
  if (heard == absl::InfinitePast()) return absl::StrCat(sentence, "; it was never heard of");
  const int64_t silent = absl::ToInt64Seconds(absl::Now() - heard);
  if (silent > 0) absl::StrAppend(&sentence, "; nothing was heard of it for ", silent, " s");
  return sentence;
}

}  // namespace

absl::StatusOr<MembershipView> ShareView(Communicator& world, const MembershipView& view) {
  const std::string text =
      absl::StrCat(view.number, " ", view.members.size(), " ", absl::StrJoin(view.members, " "),
                   " ", absl::StrJoin(view.launches, " "));
  const std::vector<std::string> words =
      absl::StrSplit(BroadcastText(world, text), ' ', absl::SkipEmpty());
  TOROID_RETURN_IF_ERROR(world.Health());
  MembershipView shared;
  size_t members = 0;
  bool read = words.size() >= 2 && absl::SimpleAtoi(words[0], &shared.number) &&
              absl::SimpleAtoi(words[1], &members);
  for (size_t i = 2; read && i < words.size(); ++i) {
    read = i < 2 + members ? absl::SimpleAtoi(words[i], &shared.members.emplace_back())
                           : absl::SimpleAtoi(words[i], &shared.launches.emplace_back());
  }
  TOROID_CHECK(read && shared.members.size() == members);
  TOROID_CHECK(shared.launches.empty() || shared.launches.size() == members);
  return shared;
}

PodMail::PodMail(PodLink& link, MembershipView view, Watch watch,
                 std::function<void(const MembershipView&)> on_view, bool joins)
    : link_(link),
      watch_(std::move(watch)),
      on_view_(std::move(on_view)),
      view_(std::move(view)),
      heard_(view_) {
  if (!joins) {
    taken_in_.emplace();
    for (const int64_t pod : view_.members) (*taken_in_)[pod] = view_.LaunchOf(pod);
  }
  worker_ = std::thread([this] { Work(work_); });
  sender_ = std::thread([this] { Work(sends_); });
  aside_sender_ = std::thread([this] { Work(aside_); });
  receiver_ = std::thread([this] { Receive(); });
}

PodMail::~PodMail() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, kFlush, [this] {
      return (work_.idle() && sends_.idle() && aside_.idle()) || !status_.ok();
    });
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
  sender_.join();
  aside_sender_.join();
  receiver_.join();
}

// --- work and sending ----------------------------------------------------------------------------

void PodMail::Give(Queue& queue, std::function<absl::Status()> item) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue.items.push_back(std::move(item));
  }
  changed_.notify_all();
}

void PodMail::Do(std::function<absl::Status()> work) { Give(work_, std::move(work)); }

void PodMail::Post(PodRank to, PodMessage message) {
  const int64_t bytes = int64_t(message.payload.size());
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    message.view = view_.number;
    CountQueued(bytes);
  }
  Give(sends_, [this, bytes, to, message = std::move(message)] {
    const absl::Status sent = Send(to, message);
    Hold(-bytes);
    return sent;
  });
}

void PodMail::PostAside(PodRank to, PodMessage message) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    message.view = view_.number;
    aside_bytes_ += int64_t(message.payload.size());
  }
  Give(aside_, [this, to, message = std::move(message)] { return Send(to, message); });
}

void PodMail::Hold(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CountQueued(bytes);
}

// REQUIRES the lock.
void PodMail::CountQueued(int64_t bytes) {
  queued_bytes_ += bytes;
  queued_bytes_peak_ = std::max(queued_bytes_peak_, queued_bytes_);
}

MembershipView PodMail::view() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return view_;
}

uint64_t PodMail::LaunchOf(int64_t pod) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!taken_in_) return 0;
  const auto found = taken_in_->find(pod);
  return found == taken_in_->end() ? 0 : found->second;
}

// A peer that takes nothing is waited for; only the end of this, or of its part, ends that.
absl::Status PodMail::Send(PodRank to, const PodMessage& message) {
  for (;;) {
    if (!view().Has(to.pod)) return absl::OkStatus();
    const absl::Status sent = link_.Send(to, message, absl::Now() + kSend);
    if (!absl::IsDeadlineExceeded(sent)) return sent;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stop_ || !status_.ok()) return sent;
  }
}

// After an error nothing more is done: whoever waits learns of the error.
void PodMail::Work(Queue& queue) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !queue.items.empty(); });
    if (stop_) return;
    std::function<absl::Status()> item = std::move(queue.items.front());
    queue.items.pop_front();
    if (!status_.ok()) continue;
    queue.busy = true;
    lock.unlock();
    const absl::Status status = item();
    item = nullptr;
    lock.lock();
    queue.busy = false;
    status_.Update(status);
    ++changes_;
    changed_.notify_all();
  }
}

void PodMail::FinishWork() {
  std::unique_lock<std::mutex> lock(mutex_);
  // What is under way reads what its owner frees next.
  changed_.wait(lock, [this] { return !work_.busy && (work_.items.empty() || !status_.ok()); });
}

// --- receiving -----------------------------------------------------------------------------------

// Whoever is behind must not wait until this rank does.
void PodMail::TellView(uint64_t& told) {
  if (!watch_.view) return;
  const std::optional<MembershipView> heard = watch_.view();
  if (!heard || heard->number <= told) return;
  told = heard->number;
  on_view_(*heard);
}

void PodMail::Receive() {
  uint64_t told = view().number;
  for (;;) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
    }
    TellView(told);
    absl::StatusOr<std::optional<PodMessage>> message = link_.Receive(absl::Now() + kReceive);
    if (!message.ok()) return Fail(message.status());
    if (message->has_value()) Keep(**std::move(message));
  }
}

void PodMail::Keep(PodMessage message) {
  const Key key = {message.kind, message.step, message.fragment, message.from};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ignored_.count(message.kind) > 0) return;
    if (!Awaits(key.from.pod, message.epoch)) {
      ++late_;
      return;
    }
    const auto before = kept_.find(key);
    if (before != kept_.end() && before->second.epoch < message.epoch) Drop(before);
    if (message.step == kBeginning && oldest_ > kBeginning) {
      status_.Update(absl::AbortedError(
          absl::StrCat("pod ", key.from.pod,
                       " was started anew: start all pods again, they go on from the "
                       "newest checkpoint that all have")));
    } else if (message.step < oldest_) {
      ++late_;
      return;
    } else if (message.step > newest_ || kept_.count(key) > 0) {
      status_.Update(absl::InternalError(absl::StrCat(
          "rank ", key.from.rank, " of pod ", key.from.pod, " sent kind ", key.kind, " of step ",
          key.step, key.step > newest_ ? ", further ahead than it can be: here step " : " twice; ",
          newest_, " is the last to expect")));
    } else {
      CountQueued(int64_t(message.payload.size()));
      kept_.emplace(key, std::move(message));
    }
    ++changes_;
  }
  changed_.notify_all();
}

// Whether what this launch of a pod sends may be of use, now or once it was taken in.
bool PodMail::Awaits(int64_t pod, uint64_t launch) const {
  if (view_.launches.empty()) return view_.Has(pod);
  if (!taken_in_) return true;  // views that others have heard of may be newer than this one's
  if (view_.Has(pod)) return launch >= view_.LaunchOf(pod);
  const auto last = taken_in_->find(pod);
  return last == taken_in_->end() || launch > last->second;
}

std::map<PodMail::Key, PodMessage>::iterator PodMail::Drop(
    std::map<Key, PodMessage>::iterator kept) {
  CountQueued(-int64_t(kept->second.payload.size()));
  ++late_;
  return kept_.erase(kept);
}

void PodMail::Accept(int64_t oldest, int64_t newest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  oldest_ = oldest;
  newest_ = newest;
  for (auto kept = kept_.begin(); kept != kept_.end();) {
    kept = kept->first.step < oldest ? Drop(kept) : std::next(kept);
  }
}

void PodMail::Ignore(int32_t kind) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ignored_.insert(kind);
  std::erase_if(kept_, [&](const auto& entry) {
    if (entry.first.kind != kind) return false;
    CountQueued(-int64_t(entry.second.payload.size()));
    return true;
  });
}

bool PodMail::Has(const Key& key) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return kept_.count(key) > 0;
}

std::optional<SharedBytes> PodMail::Look(const Key& key) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(key);
  if (found == kept_.end()) return std::nullopt;
  return found->second.payload;
}

PodMessage PodMail::Take(const Key& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(key);
  TOROID_CHECK(found != kept_.end());
  PodMessage message = std::move(found->second);
  CountQueued(-int64_t(message.payload.size()));
  kept_.erase(found);
  return message;
}

int64_t PodMail::queued_bytes_peak() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queued_bytes_peak_;
}

int64_t PodMail::aside_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return aside_bytes_;
}

absl::Status PodMail::status() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

void PodMail::Fail(const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_.Update(status);
    ++changes_;
  }
  changed_.notify_all();
}

void PodMail::Changed() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++changes_;
  }
  changed_.notify_all();
}

// --- waiting -------------------------------------------------------------------------------------

// What missing() says at the end of the slice, or as soon as it is -1.
int64_t PodMail::AwaitSlice(const std::function<int64_t()>& missing) {
  const Clock::time_point end = Clock::now() + kSlice;
  for (;;) {
    int64_t seen;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!status_.ok()) return -1;
      seen = changes_;
    }
    const Clock::time_point asked = Clock::now();
    const int64_t pod = missing();
    worked_seconds_ += SecondsSince(asked);
    if (pod < 0) return pod;
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_until(lock, end, [&] { return changes_ != seen; })) return pod;
  }
}

PodMail::Interrupt PodMail::Asked() const {
  return watch_.interrupted ? watch_.interrupted() : Interrupt::kNo;
}

// How this rank hears of a pod while one is awaited, which may itself wait for another: whoever was
// heard of once and is silent now holds all up. awaited: by this rank; -1: it has all it needs. It
// is asked all the same: the rank that stands still may have sent its share before, and only those
// it sent it to can tell that it does; those that wait, for another rank of its pod, hear that one.
PodMail::Hearing PodMail::HearingOf(int64_t pod, int64_t awaited) const {
  if (pod == link_.identity().self.pod) return kHeard;
  const absl::Time heard = link_.LastHeard(pod);
  if (pod != awaited && heard == absl::InfinitePast()) return kHeard;
  const absl::Duration silent = absl::Now() - heard;
  return silent > kAway ? kGone : silent >= kSilent ? kQuiet : kHeard;
}

// To whoever makes views.
void PodMail::TellSilent(int64_t pod) {
  if (!watch_.on_silent) return;
  const Clock::time_point now = Clock::now();
  const auto [told, fresh] = told_silent_.try_emplace(pod, now);
  if (!fresh && now - told->second < absl::ToChronoMilliseconds(kSilent)) return;
  told->second = now;
  watch_.on_silent(pod);
}

// Of what was heard of, the launches that have been taken in.
MembershipView PodMail::TakingPart(const MembershipView& heard) const {
  if (!taken_in_ || heard.launches.empty()) return heard;
  MembershipView view{heard.number, {}, {}};
  for (const auto& [pod, launch] : *taken_in_) {
    if (!heard.Has(pod) || heard.LaunchOf(pod) != launch) continue;
    view.members.push_back(pod);
    view.launches.push_back(launch);
  }
  return view;
}

// What was heard of is in force. REQUIRES the lock.
absl::Status PodMail::Install() {
  const int64_t own = link_.identity().self.pod;
  MembershipView view = TakingPart(heard_);
  if (!view.Has(own)) {
    return absl::UnavailableError(absl::StrCat("pod ", own, " takes part no more in view ",
                                               heard_.number, ": the others went on without it"));
  }
  view_ = std::move(view);
  return absl::OkStatus();
}

absl::Status PodMail::Admit(Communicator& world, const std::map<int64_t, uint64_t>& launches,
                            uint64_t number) {
  for (;;) {
    const absl::Status own = status();
    const bool first = world.rank() == 0;
    const std::optional<MembershipView> heard = first && watch_.view ? watch_.view() : std::nullopt;
    if (watch_.board != nullptr) watch_.board->Tick();
    std::vector<double> of_any = {heard && heard->number >= number ? 1.0 : 0.0,
                                  own.ok() ? 0.0 : 1.0,
                                  first && Asked() != Interrupt::kNo ? 1.0 : 0.0};
    MaxHost(world, of_any);
    TOROID_RETURN_IF_ERROR(world.Health());
    if (of_any[1] > 0) return ShareStatus(world, own);
    if (of_any[2] > 0) return absl::CancelledError("stopped while another pod was to be taken in");
    if (of_any[0] == 0) {
      std::this_thread::sleep_for(kPoll);
      continue;
    }
    TOROID_ASSIGN_OR_RETURN(heard_, ShareView(world, heard.value_or(MembershipView())));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      taken_in_ = launches;
      TOROID_RETURN_IF_ERROR(Install());
      for (auto kept = kept_.begin(); kept != kept_.end();) {
        const auto launch = launches.find(kept->first.from.pod);
        const bool old = launch != launches.end() && kept->second.epoch < launch->second;
        kept = old ? Drop(kept) : std::next(kept);
      }
    }
    return absl::OkStatus();
  }
}

bool PodMail::IsNewerView(const absl::Status& status) {
  return status.GetPayload(kNewerView).has_value();
}

// Ranks that have all they need meet the others at the end of a slice at the latest; the others
// come as soon as they have it too. So no wait is longer than its slowest rank's.
absl::Status PodMail::Await(Communicator& world, absl::string_view what,
                            const std::function<int64_t()>& missing) {
  const Clock::time_point begin = Clock::now();
  worked_seconds_ = 0;
  double patience = kPatienceSeconds;
  for (;;) {
    const int64_t pod = AwaitSlice(missing);
    const absl::Status own = status();
    const bool first = world.rank() == 0;
    const double asked = first ? double(Asked()) : 0.0;
    const std::optional<MembershipView> heard = first && watch_.view ? watch_.view() : std::nullopt;
    const bool newer = heard && heard->number > view().number;
    if (watch_.board != nullptr) watch_.board->Tick();
    // The pod that is missed, whether there is an error, what is asked, whether the view is an old
    // one, and how each pod is heard: of any rank. All have the same view, as only collective calls
    // change it.
    std::vector<double> of_any = {double(pod), own.ok() ? 0.0 : 1.0, asked, newer ? 1.0 : 0.0};
    const size_t head = of_any.size();
    const std::vector<int64_t> members = view().members;
    for (const int64_t member : members) of_any.push_back(double(HearingOf(member, pod)));
    MaxHost(world, of_any);
    TOROID_RETURN_IF_ERROR(world.Health());
    const bool waits = of_any[0] >= 0 && of_any[1] == 0 && of_any[3] == 0;
    bool away = false;  // the pod that is missed
    for (size_t m = 0; m < members.size(); ++m) {
      const auto hearing = Hearing(int(of_any[head + m]));
      away = away || (members[m] == int64_t(of_any[0]) && hearing >= kGone);
      const bool tell =
          first && hearing >= kQuiet && SecondsSince(begin) >= absl::ToDoubleSeconds(kSilent);
      if (tell && waits) TellSilent(members[m]);
    }
    const bool stop =
        of_any[2] == double(Interrupt::kNow) || (of_any[2] == double(Interrupt::kIfAway) && away);
    if (of_any[0] < 0 || of_any[1] > 0 || stop || of_any[3] > 0) {
      waited_seconds_ += SecondsSince(begin) - worked_seconds_;
      if (of_any[1] > 0) return ShareStatus(world, own);
      if (of_any[3] > 0) {
        TOROID_ASSIGN_OR_RETURN(heard_, ShareView(world, heard.value_or(MembershipView())));
        TOROID_RETURN_IF_ERROR(link_.Renew(world));
        const std::lock_guard<std::mutex> lock(mutex_);
        TOROID_RETURN_IF_ERROR(Install());
        return NewerView(view_.number);
      }
      if (of_any[0] < 0) return absl::OkStatus();
      return absl::CancelledError(
          absl::StrCat("stopped while pod ", int64_t(of_any[0]), " was waited for: ", what));
    }
    if (!first || !watch_.note || SecondsSince(begin) < patience) continue;
    const int64_t awaited = int64_t(of_any[0]);
    watch_.note(SentenceOf(what, awaited, SecondsSince(begin), link_.LastHeard(awaited)));
    patience *= 2;
  }
}

}  // namespace toroid
