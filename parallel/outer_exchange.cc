#include "parallel/outer_exchange.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "kernels/outer_step.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// The others wait about so long before a pod that is behind leaves out steps to reach them.
constexpr auto kPatience = std::chrono::seconds(1);

// They bear so long with one that is behind and does not (outer_exchange.h): seconds, and times the
// longest step of late.
constexpr double kPatienceSeconds = 2, kPatienceSteps = 8;
// A long step is forgotten by so much with each one.
constexpr double kForgotten = 1.0 / 64;

// numbers()[0]: a fragment is on its way, and its outer step is made.
constexpr double kStepped = 2;

}  // namespace

OuterExchange::OuterExchange(PodSwap& swap)
    : swap_(swap),
      store_(swap.store()),
      spec_(swap.spec()),
      read_s_(store_.ops().NewStream(/*communication=*/false)),
      width_(RowBytes(store_.ops().dtype(), 1)),
      pool_(swap.threads()),
      labels_(size_t(spec_.fragments), 0.0) {
  const size_t all = size_t(store_.groups().stored_size() * width_);
  outer_.resize(all);
  momentum_.resize(all);
  if (spec_.error_feedback) residual_.resize(all);
  int64_t most = 0;
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    most = std::max(most, store_.Stored(Kind::kWeights, g).bytes());
  }
  buffer_.resize(size_t(most));
  BeginHere();
}

void OuterExchange::BeginHere() {
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    store_.ops().Download(store_.stream(), store_.Stored(Kind::kWeights, g), At(outer_, g));
  }
}

void OuterExchange::Joined() {
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    store_.ops().Upload(store_.stream(), At(outer_, g), store_.Stored(Kind::kWeights, g));
  }
  store_.Forget();
  std::fill(labels_.begin(), labels_.end(), 0.0);
}

OuterExchange::~OuterExchange() { swap_.mail().FinishWork(); }

int64_t OuterExchange::FragmentOf(const ParamGroups& groups, int64_t fragments, int64_t group) {
  const bool layer = group != groups.embedding() && group != groups.head();
  return layer ? (group - groups.layer(0)) % fragments : 0;
}

// Messages carry the number of steps after which they were sent. A peer can be ahead by what lies
// between two waits for this rank.
void OuterExchange::Expect(int64_t step) {
  swap_.mail().Accept(flight_ ? std::min(flight_->sent, step) : step,
                      step + 2 * (spec_.every + spec_.tau) + 1);
}

bool OuterExchange::IsDue(int64_t fragment, int64_t steps) const {
  return steps % spec_.every == (fragment + 1) * spec_.every / spec_.fragments % spec_.every;
}

bool OuterExchange::Behind(int64_t steps) {
  const auto now = std::chrono::steady_clock::now();
  if (!std::exchange(behind_, false)) step_time_ = now - asked_;
  asked_ = now;
  behind_ = IsAwaited(steps, now);
  return behind_;
}

// The others have work for tau steps of their own before they wait.
bool OuterExchange::IsAwaited(int64_t steps, Clock::time_point now) {
  const auto due = [this](int64_t after) {
    for (int64_t f = 0; f < spec_.fragments; ++f) {
      if (IsDue(f, after)) return true;
    }
    return false;
  };
  int64_t next = steps + 1;
  while (!due(next)) ++next;
  if (swap_.mail().view().members.size() < 2 || swap_.MissingCard(PodSwap::kCard, next) >= 0) {
    return false;
  }
  if (std::exchange(awaited_by_others_, next) != next) since_ = now;
  return now - since_ >= kPatience + spec_.tau * step_time_;
}

absl::Status OuterExchange::After(int64_t steps, int64_t labels, int64_t word) {
  CountStep();
  const absl::Status status = SendAndApply(steps, labels, word);
  begun_ = Clock::now();
  waited_ = swap_.mail().waited_seconds();
  return status;
}

void OuterExchange::CountStep() {
  if (!begun_) return;
  const double took = std::chrono::duration<double>(Clock::now() - *begun_).count();
  const double waited = swap_.mail().waited_seconds() - waited_;
  longest_ = std::max(took - waited, longest_ * (1 - kForgotten));
}

absl::Status OuterExchange::SendAndApply(int64_t steps, int64_t labels, int64_t word) {
  heard_ = staleness_ = 0;
  for (double& since : labels_) since += double(labels);
  for (int64_t f = 0; f < spec_.fragments; ++f) {
    if (IsDue(f, steps)) Send(f, steps, word);
  }
  if (!flight_ || flight_->sent + spec_.tau != steps) return absl::OkStatus();
  staleness_ = steps - flight_->sent;
  return Apply();
}

// D = theta' - theta_q, read and encoded while the next step computes.
void OuterExchange::Send(int64_t fragment, int64_t steps, int64_t word) {
  TOROID_CHECK(!flight_);  // tau is below the distance of two fragments
  const double weight = std::exchange(labels_[size_t(fragment)], 0.0);
  flight_ = Flight{fragment, steps, false, {double(word)}};
  swap_.SendCard(PodSwap::kCard, steps, flight_->card);
  store_.ops().Fork(store_.stream(), read_s_);  // read_s waits for: the weights written
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    if (!HasGroup(fragment, g)) continue;
    swap_.mail().Do([this, g, steps, weight] {
      const Tensor own = store_.Stored(Kind::kWeights, g);
      store_.ops().Download(read_s_, own, buffer_.data());
      if (own.dtype == DType::kF64) {
        Subtract<double>(own.rows(), At(outer_, g), buffer_.data());
      } else {
        Subtract<float>(own.rows(), At(outer_, g), buffer_.data());
      }
      swap_.Offer(steps, g, weight, buffer_.data(), residual_.empty() ? nullptr : At(residual_, g));
      return absl::OkStatus();
    });
  }
}

// own = outer - own
template <typename T>
void OuterExchange::Subtract(int64_t n, const char* outer, char* own) {
  const T* from = reinterpret_cast<const T*>(outer);
  T* values = reinterpret_cast<T*>(own);
  for (int64_t i = 0; i < n; ++i) values[i] = from[i] - values[i];
}

// The outer step of the fragment that is on its way.
absl::Status OuterExchange::Merge() {
  if (flight_->settled) return absl::OkStatus();
  const int64_t sent = flight_->sent, fragment = flight_->fragment;
  const double patience = kPatienceSeconds + kPatienceSteps * double(spec_.tau + 1) * longest_;
  TOROID_RETURN_IF_ERROR(swap_.Gather(
      sent, absl::StrCat("fragment ", fragment, " of step ", sent),
      [&](int64_t group) { return HasGroup(fragment, group); }, patience));
  TOROID_ASSIGN_OR_RETURN(const auto cards, swap_.TakeCards(PodSwap::kCard, sent, flight_->card));
  for (const std::vector<double>& card : cards) word_ = std::max(word_, int64_t(card[0]));
  absl::Status status;
  uint64_t hash = 0;
  swap_.BeginMerge(sent, fragment);
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    if (!HasGroup(fragment, g)) continue;
    status.Update(swap_.Merge(sent, g, buffer_.data()).status());
    if (store_.ops().dtype() == DType::kF64) {
      Step<double>(g);
    } else {
      Step<float>(g);
    }
    hash += swap_.HashOf(g, At(outer_, g));
  }
  flight_->settled = true;
  TOROID_RETURN_IF_ERROR(ShareStatus(store_.mesh().world(), status));
  swap_.EndMerge(hash);
  return absl::OkStatus();
}

// buffer_: the mean delta.
template <typename T>
void OuterExchange::Step(int64_t group) {
  OuterStep(pool_, {spec_.outer_rate, spec_.outer_momentum},
            store_.Stored(Kind::kWeights, group).rows(), reinterpret_cast<const T*>(buffer_.data()),
            reinterpret_cast<T*>(At(outer_, group)), reinterpret_cast<T*>(At(momentum_, group)));
}

absl::Status OuterExchange::Apply() {
  TOROID_RETURN_IF_ERROR(Merge());
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    if (!HasGroup(flight_->fragment, g)) continue;
    if (store_.ops().dtype() == DType::kF64) {
      Mix<double>(g);
    } else {
      Mix<float>(g);
    }
  }
  store_.Forget();
  heard_ = std::exchange(word_, 0);
  flight_.reset();
  return absl::OkStatus();
}

template <typename T>
void OuterExchange::Mix(int64_t group) {
  const Tensor weights = store_.Stored(Kind::kWeights, group);
  T* own = reinterpret_cast<T*>(buffer_.data());
  store_.ops().Download(store_.stream(), weights, own);
  MixWeights(pool_, spec_.alpha, weights.rows(), reinterpret_cast<const T*>(At(outer_, group)),
             own);
  store_.ops().Upload(store_.stream(), own, weights);
}

// --- for checkpoints -----------------------------------------------------------------------------

absl::Status OuterExchange::Settle() {
  FinishReading();
  return flight_ ? Merge() : absl::OkStatus();
}

std::vector<double> OuterExchange::numbers() const {
  std::vector<double> numbers = {flight_ ? kStepped : 0.0,
                                 flight_ ? double(flight_->fragment) : 0.0,
                                 flight_ ? double(flight_->sent) : 0.0, double(word_)};
  numbers.insert(numbers.end(), labels_.begin(), labels_.end());
  return numbers;
}

absl::Status OuterExchange::Restore(const std::vector<double>& numbers) {
  if (int64_t(numbers.size()) != count()) {
    return absl::DataLossError("the checkpoint's exchange has another number of fragments");
  }
  if (numbers[0] != 0 && numbers[0] != kStepped) {
    return absl::DataLossError(
        "the checkpoint has a fragment on its way as an older toroid kept it: go on from one that "
        "has none");
  }
  flight_.reset();
  if (numbers[0] != 0) flight_ = Flight{int64_t(numbers[1]), int64_t(numbers[2]), true, {}};
  word_ = swap_.joined() ? int64_t(numbers[3]) : 0;  // who was told to stop has stopped
  labels_.assign(numbers.begin() + 4, numbers.end());
  return absl::OkStatus();
}

}  // namespace toroid
