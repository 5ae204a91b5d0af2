// Pods that come while others train (membership_view.h).
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/pod_swap.h"

namespace toroid {
namespace {

constexpr size_t kAdmissionHead = 4;  // numbers before those of pods
constexpr size_t kOfEachPod = 5;

}  // namespace

// --- those that train ----------------------------------------------------------------------------

// What goes with a card: the newest view, and the launch of each pod in it.
std::vector<double> PodSwap::Heard() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<double> heard = {double(told_.number)};
  for (int64_t q = 0; q < pods(); ++q) heard.push_back(double(told_.LaunchOf(q)));
  return heard;
}

// The newest of what came with the cards of a merge: the same on all pods that made it.
void PodSwap::Learn(const std::vector<double>& heard) {
  coming_.clear();
  coming_view_ = uint64_t(heard[0]);
  for (int64_t q = 0; q < pods(); ++q) {
    const uint64_t launch = uint64_t(heard[size_t(q) + 1]);
    if (launch > mail_->LaunchOf(q)) coming_[q] = launch;
  }
}

absl::StatusOr<std::vector<int64_t>> PodSwap::TakeIn(int64_t steps) {
  Admission told;
  told.steps = steps;
  told.view = coming_view_;
  told.dtype = store_.ops().dtype();
  told.meshes = meshes_;
  for (int64_t q = 0; q < pods(); ++q) {
    const auto comes = coming_.find(q);
    told.launches.push_back(comes == coming_.end() ? mail_->LaunchOf(q) : comes->second);
    told.comes.push_back(comes != coming_.end());
  }
  const auto giver = std::find_if(taking_part_.begin(), taking_part_.end(),
                                  [&](int64_t q) { return coming_.count(q) == 0; });
  TOROID_CHECK(giver != taking_part_.end() || coming_.count(pod_) > 0);
  if (giver != taking_part_.end()) told.giver = *giver;
  admission_ = told;
  const std::map<int64_t, uint64_t> coming = std::exchange(coming_, {});
  TOROID_RETURN_IF_ERROR(Admit());
  const MembershipView view = mail_->view();
  std::vector<int64_t> taken;
  for (const auto& [q, launch] : coming) {
    if (!view.Has(q)) continue;  // lost again
    if (world().rank() == 0) {
      PodMessage message;
      message.kind = kAdmission;
      message.payload = ToPayload(told.ToNumbers());
      mail_->Post({q, 0}, std::move(message));
    }
    if (told.giver == pod_) taken.push_back(q);
  }
  return taken;
}

// From here on the launches of the admission take part.
absl::Status PodSwap::Admit() {
  std::map<int64_t, uint64_t> launches;
  for (int64_t q = 0; q < pods(); ++q) {
    if (admission_.launches[size_t(q)] > 0) launches[q] = admission_.launches[size_t(q)];
  }
  TOROID_RETURN_IF_ERROR(mail_->Admit(world(), launches, admission_.view));
  gathered_ = 0;
  return link_.Renew(world());
}

// --- one that comes ------------------------------------------------------------------------------

std::vector<double> PodSwap::Admission::ToNumbers() const {
  std::vector<double> numbers = {double(steps), double(giver), double(view), double(dtype)};
  for (size_t q = 0; q < launches.size(); ++q) {
    numbers.push_back(double(launches[q]));
    numbers.push_back(comes[q] ? 1 : 0);
    for (const int64_t axis : {meshes[q].data, meshes[q].ring, meshes[q].tensor}) {
      numbers.push_back(double(axis));
    }
  }
  return numbers;
}

PodSwap::Admission PodSwap::Admission::Of(const std::vector<double>& numbers) {
  Admission told;
  told.steps = int64_t(numbers[0]);
  told.giver = int64_t(numbers[1]);
  told.view = uint64_t(numbers[2]);
  told.dtype = DType(int(numbers[3]));
  for (size_t i = kAdmissionHead; i < numbers.size(); i += kOfEachPod) {
    told.launches.push_back(uint64_t(numbers[i]));
    told.comes.push_back(numbers[i + 1] != 0);
    told.meshes.push_back(
        {int64_t(numbers[i + 2]), int64_t(numbers[i + 3]), int64_t(numbers[i + 4])});
  }
  return told;
}

// What all pods that train by the newest view have told alike. Rank 0's.
std::optional<std::vector<double>> PodSwap::AgreedAdmission() const {
  const MembershipView view = mail_->view();
  const size_t count = kAdmissionHead + kOfEachPod * size_t(pods());
  for (const int64_t first : view.members) {
    const std::optional<SharedBytes> told = mail_->Look({kAdmission, 0, 0, {first, 0}});
    if (!told || told->size() != count * sizeof(double)) continue;
    std::vector<double> numbers(count);
    std::memcpy(numbers.data(), told->data(), told->size());
    const Admission admission = Admission::Of(numbers);
    const bool alike = std::all_of(view.members.begin(), view.members.end(), [&](int64_t q) {
      const uint64_t launch = admission.launches[size_t(q)];
      if (q == pod_) return launch == link_.identity().epoch;
      if (admission.comes[size_t(q)] || launch != view.LaunchOf(q)) return true;  // it waits too
      return mail_->Look({kAdmission, 0, 0, {q, 0}}) == told;
    });
    if (alike) return numbers;
  }
  return std::nullopt;
}

absl::Status PodSwap::Join(const PodMail::Watch& watch) {
  MembershipView view;
  const bool first = world().rank() == 0;
  if (watch.view && first) view = watch.view().value_or(view);
  TOROID_ASSIGN_OR_RETURN(view, ShareView(world(), view));
  if (view.LaunchOf(pod_) != link_.identity().epoch) {
    return absl::FailedPreconditionError(
        absl::StrCat("pod ", pod_, " of launch ", link_.identity().epoch, " is to join, but view ",
                     view.number, " does not have it"));
  }
  told_ = view;
  mail_ = std::make_unique<PodMail>(
      link_, std::move(view), watch, [this](const MembershipView& next) { Repeat(next); },
      /*joins=*/true);
  mail_->Ignore(kTakenIn);
  for (;;) {
    const absl::Status told = mail_->Await(world(), "the others' next merge, to take part", [&] {
      if (!first || AgreedAdmission()) return int64_t{-1};
      const std::vector<int64_t> members = mail_->view().members;
      return members[0] == pod_ && members.size() > 1 ? members[1] : members[0];
    });
    if (told.ok()) return Believe();
    if (!PodMail::IsNewerView(told)) return told;
  }
}

absl::Status PodSwap::Believe() {
  std::vector<double> numbers(kAdmissionHead + kOfEachPod * size_t(pods()), 0.0);
  if (world().rank() == 0) numbers = AgreedAdmission().value_or(numbers);
  BroadcastHost(world(), numbers);
  TOROID_RETURN_IF_ERROR(world().Health());
  admission_ = Admission::Of(numbers);
  mail_->Ignore(kAdmission);
  const MeshShape& mesh = store_.mesh().shape();
  if (admission_.dtype != store_.ops().dtype()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the other pods compute in ", Info(admission_.dtype).name, ", this one in ",
                     Info(store_.ops().dtype()).name, ": give all pods the same --compute"));
  }
  meshes_ = admission_.meshes;
  if (meshes_[size_t(pod_)] != mesh) {
    return absl::FailedPreconditionError(absl::StrCat(
        "pod ", pod_, " comes with the mesh ", ToString(mesh), ", the others take it to have ",
        ToString(meshes_[size_t(pod_)]), ": give it that, in pod_mesh or by as many slots"));
  }
  TOROID_RETURN_IF_ERROR(Admit());
  SendCard(kTakenIn, joined_at(), {});  // its lines are up from here on
  return absl::OkStatus();
}

}  // namespace toroid
