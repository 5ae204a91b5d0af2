// Pods that are slow: heard, and yet not where the others wait for them.
//
// Who waits for a merge says so to all (kReached), at once and beside what is posted. So whoever
// waits tells a pod that is still on its way from one that waits too, for a share that a thin link
// brings or for a third pod: a pod is on its way if
//   - its card of the merge is not here, which leaves before its share: it has not done the steps
//     that the share is of, or
//   - all that it sends is here, behind which kReached would be, but kReached is not: it has not
//     done the steps after which the share is applied.
// A merge needs all members of the view, so no pod that is on its way to one waits in another, and
// of two pods only the one behind can be told of.
//
// Not told of is who is on its way together with more than half of the view: then this pod is fast.
// Nor is anybody in the first merges after the start or after pods were taken in, of which some
// load and copy what others have long.
#include "absl/time/clock.h"
#include "parallel/pod_swap.h"

namespace toroid {
namespace {

// Merges before anybody is told of. The first needs the state that a pod which comes must have.
constexpr int64_t kFirstMerges = 2;
// So often it is told again, in seconds.
constexpr double kAgain = 1;

double SecondsBetween(std::chrono::steady_clock::time_point begin,
                      std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

void PodSwap::BeginWaiting(int64_t step, const std::function<bool(int64_t group)>& has,
                           double patience) {
  if (world().rank() != 0) return;
  waiting_ = Waiting{step, has, patience, std::chrono::steady_clock::now(), {}, {}};
}

// What a peer has no room for now is tried again at the next look.
void PodSwap::TellReached() {
  const MembershipView view = mail_->view();
  for (const int64_t q : view.members) {
    if (q == pod_ || waiting_->know.count(q) > 0) continue;
    PodMessage message;
    message.kind = kReached;
    message.step = waiting_->step;
    message.view = view.number;
    if (link_.Send({q, 0}, std::move(message), absl::InfinitePast()).ok()) waiting_->know.insert(q);
  }
}

bool PodSwap::IsOnItsWay(int64_t pod) const {
  const int64_t step = waiting_->step;
  const auto view = int32_t(mail_->view().number);
  if (pod == pod_ || mail_->Has({kReached, step, 0, {pod, 0}})) return false;
  if (mail_->Has({kHave, step, view, {pod, 0}})) return false;
  if (!mail_->Has({kCard, step, 0, {pod, 0}})) return true;
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    if (waiting_->has(g) && LacksPart(step, g, pod)) return false;
  }
  return true;
}

// Of rank 0, at each look at what is missing.
void PodSwap::LookForSlow() {
  if (!waiting_) return;
  TellReached();
  const auto now = std::chrono::steady_clock::now();
  const double waited = SecondsBetween(waiting_->since, now);
  if (!on_slow_ || gathered_ < kFirstMerges || waited < waiting_->patience ||
      SecondsBetween(waiting_->told, now) < kAgain) {
    return;
  }
  const std::vector<int64_t> members = mail_->view().members;
  std::vector<int64_t> slow;
  for (const int64_t q : members) {
    if (IsOnItsWay(q)) slow.push_back(q);
  }
  if (slow.empty() || 2 * slow.size() > members.size()) return;
  waiting_->told = now;
  for (const int64_t q : slow) on_slow_(q, waited);
}

// The merge can be made, or never will be.
void PodSwap::EndWaiting() {
  ++gathered_;
  if (!waiting_) return;
  for (int64_t q = 0; q < pods(); ++q) {
    const PodMail::Key key = {kReached, waiting_->step, 0, {q, 0}};
    if (mail_->Has(key)) mail_->Take(key);
  }
  waiting_.reset();
}

}  // namespace toroid
