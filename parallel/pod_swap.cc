#include "parallel/pod_swap.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/param_hash.h"

namespace toroid {
namespace {

// What another pod may still have to agree on, at most: two merges, `delayed` having as many on
// their way, each with two kinds of squares.
constexpr size_t kMostBehind = 6;

absl::Status FromPayload(const PodMessage& message, std::vector<double>& numbers) {
  if (message.payload.size() != numbers.size() * sizeof(double)) {
    return absl::InvalidArgumentError(absl::StrCat("pod ", message.from.pod, " sent ",
                                                   message.payload.size(), " bytes for ",
                                                   numbers.size(), " numbers"));
  }
  std::copy_n(message.payload.data(), message.payload.size(),
              reinterpret_cast<char*>(numbers.data()));
  return absl::OkStatus();
}

}  // namespace

std::string PodSwap::ToPayload(const std::vector<double>& numbers) {
  const char* bytes = reinterpret_cast<const char*>(numbers.data());
  return std::string(bytes, numbers.size() * sizeof(double));
}

PodSwap::PodSwap(PodLink& link, const Options& options, ParamStore& store)
    : options_(options),
      link_(link),
      store_(store),
      pod_(link.identity().self.pod),
      encode_pool_(1),
      merge_pool_(options.threads) {}

absl::StatusOr<std::unique_ptr<PodSwap>> PodSwap::Create(PodLink& link, int64_t pods,
                                                         const ModelConfig& config, int64_t layers,
                                                         ParamStore& store, const Options& options,
                                                         const PodMail::Watch& watch) {
  std::unique_ptr<PodSwap> swap(new PodSwap(link, options, store));
  TOROID_CHECK(swap->pod_ >= 0 && swap->pod_ < pods);
  TOROID_CHECK_EQ(link.identity().self.rank, store.mesh().rank());
  swap->meshes_.resize(size_t(pods));
  swap->on_slow_ = watch.on_slow;
  TOROID_RETURN_IF_ERROR(options.joins ? swap->Join(watch) : swap->Meet(config, watch));
  swap->LayOut(config, layers);
  swap->mail_->Changed();
  return swap;
}

// All pods; number and launches of the view are rank 0's. Where pods may be away, all that the view
// has: those that it lacks come later, with the mesh of the last one that is here.
absl::Status PodSwap::Meet(const ModelConfig& config, const PodMail::Watch& watch) {
  MembershipView heard;
  if (watch.view && world().rank() == 0) heard = watch.view().value_or(heard);
  TOROID_ASSIGN_OR_RETURN(heard, ShareView(world(), heard));
  MembershipView view{heard.number, {}, {}};
  const bool some = options_.go_on && !heard.launches.empty();
  for (int64_t q = 0; q < pods(); ++q) {
    if (some && !heard.Has(q)) continue;
    view.members.push_back(q);
    if (!heard.launches.empty()) view.launches.push_back(heard.LaunchOf(q));
  }
  if (!view.Has(pod_)) {
    return absl::FailedPreconditionError(
        absl::StrCat("pod ", pod_, " is to begin, but view ", view.number, " does not have it"));
  }
  told_ = view;
  taking_part_ = view.members;
  mail_ = std::make_unique<PodMail>(link_, std::move(view), watch,
                                    [this](const MembershipView& next) { Repeat(next); });
  mail_->Ignore(kTakenIn);
  const MeshShape& mesh = store_.mesh().shape();
  const std::vector<double> hello = {double(mesh.data), double(mesh.ring), double(mesh.tensor),
                                     double(store_.ops().dtype())};
  TOROID_ASSIGN_OR_RETURN(const auto cards,
                          SwapCards(kHello, PodMail::kBeginning, hello, "its mesh"));
  for (size_t i = 0; i < cards.size(); ++i) {
    const int64_t q = taking_part_[i];
    const std::vector<double>& card = cards[i];
    MeshShape shape;
    absl::Status fits;
    if (std::all_of(card.begin(), card.begin() + 3,
                    [](double axis) { return axis >= 1 && axis <= 1 << 20; }) &&
        card[2] <= double(config.query_heads)) {
      shape = {int64_t(card[0]), int64_t(card[1]), int64_t(card[2])};
    } else {
      fits = absl::InvalidArgumentError("its mesh is none");
    }
    if (card[3] != hello[3]) {
      fits = absl::FailedPreconditionError(
          "it computes in another type: give all pods the same --compute");
    }
    if (!fits.ok()) {
      return absl::Status(fits.code(), absl::StrCat("pod ", q, ": ", fits.message()));
    }
    meshes_[size_t(q)] = shape;
  }
  for (int64_t q = 0; q < pods(); ++q) {
    if (std::binary_search(taking_part_.begin(), taking_part_.end(), q)) continue;
    meshes_[size_t(q)] = meshes_[size_t(taking_part_.back())];
  }
  return absl::OkStatus();
}

void PodSwap::LayOut(const ModelConfig& config, int64_t layers) {
  const MeshShape& own = store_.mesh().shape();
  const int64_t rank = store_.mesh().rank();
  coder_ = std::make_unique<const ExchangeCoder>(config, layers, own, rank);
  for (int64_t q = 0; q < pods(); ++q) {
    layouts_.push_back(q == pod_ ? nullptr
                                 : std::make_unique<const ExchangeLayout>(config, layers, own, rank,
                                                                          meshes_[size_t(q)]));
  }
  rule_.codec = options_.spec.codec;
  for (const auto& layout : layouts_) rule_.layouts.push_back(layout.get());
}

// --- values --------------------------------------------------------------------------------------

// -1 once all of a group is here, else a pod whose share is missing; its own last.
int64_t PodSwap::Missing(int64_t step, int64_t group) const {
  for (const int64_t q : mail_->view().members) {
    if (q != pod_ && LacksPart(step, group, q)) return q;
  }
  return LacksPart(step, group, pod_) ? pod_ : -1;
}

absl::Status PodSwap::Gather(int64_t step, absl::string_view what,
                             const std::function<bool(int64_t group)>& has,
                             std::optional<double> patience) {
  if (patience && options_.go_on) BeginWaiting(step, has, *patience);
  for (;;) {
    int64_t group = 0;
    absl::Status gathered = mail_->Await(world(), what, [&] {
      LookForSlow();
      for (; group < store_.groups().count(); ++group) {
        if (!has(group)) continue;
        const int64_t pod = Missing(step, group);
        if (pod >= 0) return pod;
      }
      return MissingCard(kCard, step);
    });
    if (gathered.ok() && options_.go_on) gathered = AgreeOnShares(step, what, has);
    if (PodMail::IsNewerView(gathered)) continue;
    EndWaiting();
    return gathered;
  }
}

absl::Status PodSwap::GatherEach(int64_t step, absl::string_view what,
                                 const std::function<void(int64_t group)>& on_group) {
  int64_t left = store_.groups().count();
  const auto merge_one = [&] { on_group(--left); };
  if (options_.go_on) {  // who counts is agreed on behind the last
    TOROID_RETURN_IF_ERROR(Gather(step, what, [](int64_t) { return true; }));
    while (left > 0) merge_one();
    return absl::OkStatus();
  }
  for (;;) {
    const absl::Status gathered = mail_->Await(world(), what, [&] {
      while (left > 0) {
        const int64_t pod = Missing(step, left - 1);
        if (pod >= 0) return pod;
        merge_one();
      }
      return MissingCard(kCard, step);
    });
    if (!PodMail::IsNewerView(gathered)) return gathered;
  }
}

absl::Status PodSwap::AgreeOnShares(int64_t step, absl::string_view what,
                                    const std::function<bool(int64_t group)>& has) {
  const auto lacks = [&](int64_t q) {
    if (q != pod_ && world().rank() == 0 && !mail_->Has({kCard, step, 0, {q, 0}})) return true;
    for (int64_t g = 0; g < store_.groups().count(); ++g) {
      if (has(g) && LacksPart(step, g, q)) return true;
    }
    return false;
  };
  TOROID_ASSIGN_OR_RETURN(taking_part_, Agree(kHave, step, what, lacks));
  return absl::OkStatus();
}

// The second half of a merge (membership_view.h): the pods of which no member of the view lacks
// anything. lacks: asked of each rank. Aborted: there is a newer view.
absl::StatusOr<std::vector<int64_t>> PodSwap::Agree(Kind kind, int64_t step, absl::string_view what,
                                                    const std::function<bool(int64_t pod)>& lacks) {
  const MembershipView view = mail_->view();
  Agreed agreed{kind, step, view.number, {}};
  for (int64_t q = 0; q < pods(); ++q) agreed.pods.push_back(lacks(q) ? 1 : 0);
  MaxHost(world(), agreed.pods);
  for (double& pod : agreed.pods) pod = 1 - pod;
  SendHave(agreed, view.number);
  const bool first = world().rank() == 0;
  const auto key = [&](int64_t pod) {
    return PodMail::Key{kind, step, int32_t(view.number), {pod, 0}};
  };
  TOROID_RETURN_IF_ERROR(mail_->Await(world(), what, [&] {
    LookForSlow();
    for (const int64_t q : view.members) {
      if (first && q != pod_ && !mail_->Has(key(q))) return q;
    }
    return int64_t{-1};
  }));
  absl::Status status;
  for (const int64_t q : view.members) {
    if (!first || q == pod_) continue;
    std::vector<double> theirs(agreed.pods.size());
    status.Update(FromPayload(mail_->Take(key(q)), theirs));
    for (size_t i = 0; i < theirs.size(); ++i) agreed.pods[i] *= theirs[i];
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world(), status));
  BroadcastHost(world(), agreed.pods);
  TOROID_RETURN_IF_ERROR(world().Health());
  std::vector<int64_t> all_have;
  for (int64_t q = 0; q < pods(); ++q) {
    if (agreed.pods[size_t(q)] == 1) all_have.push_back(q);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (told_.number > agreed.view) SendHave(agreed, told_.number);
  agreed_.push_back(std::move(agreed));
  if (agreed_.size() > kMostBehind) agreed_.pop_front();
  return all_have;
}

void PodSwap::SendHave(const Agreed& agreed, uint64_t view) {
  SendCard(agreed.kind, agreed.step, agreed.pods, int32_t(view));
}

// In a newer view, what was agreed on in one before.
void PodSwap::Repeat(const MembershipView& view) {
  const std::lock_guard<std::mutex> lock(mutex_);
  told_ = view;
  for (const Agreed& agreed : agreed_) {
    if (agreed.view < view.number) SendHave(agreed, view.number);
  }
}

absl::StatusOr<double> PodSwap::Merge(int64_t step, int64_t group, void* out, uint64_t* hash) {
  TOROID_ASSIGN_OR_RETURN(const std::vector<PodShare> shares, TakeShares(step, group));
  if (history_ != nullptr) history_->Take(group, shares);
  const auto mean = [&](auto* values) {
    using T = std::remove_pointer_t<decltype(values)>;
    std::map<int64_t, std::atomic<uint64_t>> hashes;  // of shares, by pod
    std::atomic<uint64_t> of_mean = 0;
    for (const PodShare& share : shares) hashes.try_emplace(share.pod, 0);
    const RangeHasher hasher(store_.groups(), group, store_.mesh().shard().rank());
    MergeObserver<T> observe;
    if (history_ != nullptr) {
      observe = [&](const PodShare* share, int64_t begin, int64_t count, const T* merged) {
        if (share == nullptr && hash == nullptr) return;
        (share == nullptr ? of_mean : hashes.at(share->pod)) += hasher.Hash(begin, count, merged);
      };
    }
    const absl::StatusOr<double> weights =
        MeanOfShares<T>(merge_pool_, rule_, group, coder_->size(group), shares, observe, values);
    if (history_ == nullptr || !weights.ok()) return weights;
    for (const PodShare& share : shares) {
      if (share.weight > 0) history_->Input(share.pod, hashes.at(share.pod));
    }
    if (hash != nullptr) *hash += of_mean;
    return weights;
  };
  if (store_.ops().dtype() == DType::kF64) return mean(static_cast<double*>(out));
  return mean(static_cast<float*>(out));
}

void PodSwap::BeginMerge(int64_t step, int64_t fragment) {
  if (history_ != nullptr) history_->Begin(step, fragment, mail_->view().number);
}

uint64_t PodSwap::HashOf(int64_t group, const void* values) const {
  if (history_ == nullptr) return 0;
  return RangeHash(store_.groups(), group, store_.mesh().shard().rank(), store_.ops().dtype(), 0,
                   coder_->size(group), values);
}

void PodSwap::EndMerge(uint64_t result) {
  if (history_ != nullptr) history_->End(result);
}

// --- cards ---------------------------------------------------------------------------------------

void PodSwap::SendCard(Kind kind, int64_t step, std::vector<double> numbers, int32_t fragment) {
  if (store_.mesh().rank() != 0) return;
  if (kind == kCard && options_.go_on) {
    const std::vector<double>& heard = told_heard_[step] = Heard();
    numbers.insert(numbers.end(), heard.begin(), heard.end());
  }
  for (int64_t q = 0; q < pods(); ++q) {
    if (q == pod_) continue;
    PodMessage message;
    message.kind = kind;
    message.step = step;
    message.fragment = fragment;
    message.payload = ToPayload(numbers);
    mail_->Post({q, 0}, std::move(message));
  }
}

int64_t PodSwap::MissingCard(Kind kind, int64_t step) const {
  if (store_.mesh().rank() != 0) return -1;
  for (const int64_t q : mail_->view().members) {
    if (q != pod_ && !mail_->Has({kind, step, 0, {q, 0}})) return q;
  }
  return -1;
}

absl::StatusOr<std::vector<std::vector<double>>> PodSwap::TakeCards(
    Kind kind, int64_t step, const std::vector<double>& own) {
  std::vector<std::vector<double>> cards;
  absl::Status status;
  std::vector<double> heard(kind == kCard && options_.go_on ? size_t(pods()) + 1 : 0, 0.0);
  if (!heard.empty() && world().rank() == 0) {
    heard = told_heard_.at(step);
    told_heard_.erase(told_heard_.begin(), told_heard_.upper_bound(step));
  }
  for (const int64_t q : taking_part_) {
    std::vector<double>& card = cards.emplace_back(own);
    card.insert(card.end(), heard.begin(), heard.end());
    if (q == pod_ || store_.mesh().rank() != 0) continue;
    status.Update(FromPayload(mail_->Take({kind, step, 0, {q, 0}}), card));
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world(), status));
  for (std::vector<double>& card : cards) {
    BroadcastHost(world(), card);
    const auto trailer = card.end() - long(heard.size());
    for (size_t i = 0; i < heard.size(); ++i) heard[i] = std::max(heard[i], trailer[long(i)]);
    card.erase(trailer, card.end());
  }
  TOROID_RETURN_IF_ERROR(world().Health());
  if (!heard.empty()) Learn(heard);
  return cards;
}

absl::StatusOr<std::vector<std::vector<double>>> PodSwap::SwapCards(Kind kind, int64_t step,
                                                                    const std::vector<double>& own,
                                                                    absl::string_view what) {
  SendCard(kind, step, own);
  for (;;) {
    const absl::Status here = mail_->Await(world(), what, [&] { return MissingCard(kind, step); });
    if (here.ok()) return TakeCards(kind, step, own);
    // A view may have a higher number and be the same.
    if (!PodMail::IsNewerView(here) || mail_->view().members.size() < taking_part_.size()) {
      return here;
    }
  }
}

absl::StatusOr<int64_t> PodSwap::TakeOfOnePod(Kind kind, int64_t step, std::vector<double>& own,
                                              absl::string_view what) {
  const bool first = world().rank() == 0;
  int64_t pod = 0;
  if (options_.go_on || pod_ == 0) SendCard(kind, step, own);
  if (options_.go_on) {
    TOROID_ASSIGN_OR_RETURN(pod, AgreeOnPod(kind, step, what));
  } else if (pod_ != 0) {
    const PodMail::Key key = {kind, step, 0, {0, 0}};
    TOROID_RETURN_IF_ERROR(mail_->Await(
        world(), what, [&] { return !first || mail_->Has(key) ? int64_t{-1} : int64_t{0}; }));
  }
  if (!options_.go_on && pod_ == 0) {
    TOROID_RETURN_IF_ERROR(ShareStatus(world(), mail_->status()));
    return pod;
  }
  absl::Status status;
  if (first && pod != pod_) status = FromPayload(mail_->Take({kind, step, 0, {pod, 0}}), own);
  TOROID_RETURN_IF_ERROR(ShareStatus(world(), status));
  BroadcastHost(world(), own);
  TOROID_RETURN_IF_ERROR(world().Health());
  return pod;
}

// The first pod whose numbers all have.
absl::StatusOr<int64_t> PodSwap::AgreeOnPod(Kind kind, int64_t step, absl::string_view what) {
  const Kind have = kind == kGradientSquares ? kHaveGradientSquares : kHaveWeightSquares;
  const auto lacks = [&](int64_t q) {
    return q != pod_ && world().rank() == 0 && !mail_->Has({kind, step, 0, {q, 0}});
  };
  for (;;) {
    absl::Status here = mail_->Await(world(), what, [&] { return MissingCard(kind, step); });
    if (here.ok()) {
      const absl::StatusOr<std::vector<int64_t>> all_have = Agree(have, step, what, lacks);
      if (all_have.ok()) return all_have->front();
      here = all_have.status();
    }
    if (!PodMail::IsNewerView(here)) return here;
  }
}

}  // namespace toroid
