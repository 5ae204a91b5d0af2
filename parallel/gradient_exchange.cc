#include "parallel/gradient_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/exchange_rows.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

}  // namespace

GradientExchange::GradientExchange(PodSwap& swap)
    : swap_(swap),
      store_(swap.store()),
      read_s_(store_.ops().NewStream(/*communication=*/false)),
      width_(RowBytes(store_.ops().dtype(), 1)) {
  int64_t most = 0;
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    most = std::max(most, store_.Stored(Kind::kGradients, g).bytes());
  }
  if (!on_host() || swap.spec().error_feedback) reading_.resize(size_t(most));
  if (!on_host()) merged_.resize(size_t(most));
  const size_t all = size_t(store_.groups().stored_size() * width_);
  if (swap.spec().error_feedback) residual_.resize(all);
  if (delay() > 0) pending_.resize(all);
  store_.OnWhole([this](int64_t group) { Contribute(group); });
  if (!SplitsByRows(swap.spec().codec)) return;
  store_.OnRowsWhole(
      [this](int64_t group, const StoredRows& rows) { ContributeRows(group, rows); });
}

GradientExchange::~GradientExchange() {
  store_.OnWhole([](int64_t) {});
  store_.OnRowsWhole([](int64_t, const StoredRows&) {});
  swap_.mail().FinishWork();  // it reads what is freed here
}

void GradientExchange::Begin(int64_t step, int64_t labels) {
  step_ = step;
  labels_ = labels;
  if (sent_ < 0) sent_ = step - 1;  // what is restored was taken behind it
  // A peer that has this rank's part of `step` may be delay + 1 steps ahead, never more.
  swap_.mail().Accept(step - delay(), step + delay() + 1);
  for (int64_t g = 0; labels == 0 && g < store_.groups().count(); ++g) {
    swap_.mail().Do([this, step, g] {
      swap_.Offer(step, g, 0, nullptr, nullptr);
      return absl::OkStatus();
    });
  }
}

// These elements of the stored gradient, on the host, where each is of the stored range: other
// elements may be written meanwhile.
void* GradientExchange::Read(int64_t group, const std::vector<Range>& elements) {
  const Tensor gradient = store_.Stored(Kind::kGradients, group);
  if (reading_.empty()) {
    store_.ops().Synchronize(read_s_);
    return gradient.data;
  }
  for (const Range& range : elements) {
    store_.ops().Download(read_s_, gradient.Rows(range.begin, range.size()),
                          reading_.data() + range.begin * width_);
  }
  return reading_.data();
}

void* GradientExchange::Residual(int64_t group) {
  return residual_.empty() ? nullptr
                           : residual_.data() + store_.groups().StoredBegin(group) * width_;
}

void GradientExchange::Contribute(int64_t group) {
  // read_s waits for: the gradient whole.
  store_.ops().Fork(store_.stream(), read_s_);
  swap_.mail().Do([this, group, step = step_, labels = labels_] {
    void* const values = Read(group, {{0, swap_.coder().size(group)}});
    swap_.Offer(step, group, double(labels), values, Residual(group));
    return absl::OkStatus();
  });
}

void GradientExchange::ContributeRows(int64_t group, const StoredRows& rows) {
  // read_s waits for: these rows whole.
  store_.ops().Fork(store_.stream(), read_s_);
  swap_.mail().Do([this, group, rows, step = step_, labels = labels_] {
    void* const values = Read(group, rows.Ranges(swap_.coder().size(group), /*of_chosen=*/true));
    swap_.OfferRows(step, group, double(labels), rows, values, Residual(group));
    return absl::OkStatus();
  });
}

absl::StatusOr<PodTotals> GradientExchange::Finish(double loss, int64_t word) {
  swap_.mail().FinishWork();  // the store's gradient has been read: it can be replaced
  const std::vector<double> card = {loss, double(labels_), double(word)};
  swap_.SendCard(PodSwap::kCard, step_, card);
  staleness_ = 0;
  if (delay() == 0) {
    return Merge(step_, card, /*keep=*/false);
  }
  PodTotals totals;
  const int64_t sent = std::exchange(sent_, step_);
  if (before_ == Before::kTravels) {
    TOROID_ASSIGN_OR_RETURN(totals, Merge(sent, card_, /*keep=*/false));
  } else if (before_ == Before::kSettled) {
    totals = totals_;
    for (int64_t g = 0; g < store_.groups().count(); ++g) {
      store_.ops().Upload(store_.stream(), Pending(g), store_.Stored(Kind::kGradients, g));
    }
  }
  if (totals.labels > 0) staleness_ = step_ - sent;
  before_ = Before::kTravels;
  card_ = card;
  return totals;
}

absl::StatusOr<PodTotals> GradientExchange::Totals(int64_t step, const std::vector<double>& own) {
  TOROID_ASSIGN_OR_RETURN(const auto cards, swap_.TakeCards(PodSwap::kCard, step, own));
  PodTotals totals;
  double labels = 0, loss = 0;
  for (const std::vector<double>& card : cards) {
    if (card[1] > 0) loss += card[0] * card[1];
    labels += card[1];
    totals.word = std::max(totals.word, int64_t(card[2]));
  }
  totals.labels = int64_t(labels);
  if (labels > 0) totals.loss = loss / labels;
  return totals;
}

// The mean gradient of a step, once all shares of it have come, into the store or to where it is
// kept for the next step.
absl::StatusOr<PodTotals> GradientExchange::Merge(int64_t step, const std::vector<double>& card,
                                                  bool keep) {
  absl::Status status;
  uint64_t hash = 0;
  bool begun = false;
  store_.ops().Synchronize(store_.stream());  // waits for: the gradient that is replaced
  const auto merge = [&](int64_t group) {
    if (!std::exchange(begun, true)) swap_.BeginMerge(step + 1, 0);
    const Tensor gradient = store_.Stored(Kind::kGradients, group);
    void* const mean = keep ? Pending(group) : on_host() ? gradient.data : merged_.data();
    status.Update(swap_.Merge(step, group, mean, &hash).status());
    if (mean == merged_.data()) store_.ops().Upload(store_.stream(), mean, gradient);
  };
  TOROID_RETURN_IF_ERROR(
      swap_.GatherEach(step, absl::StrCat("the gradient of step ", step), merge));
  TOROID_ASSIGN_OR_RETURN(const PodTotals totals, Totals(step, card));
  TOROID_RETURN_IF_ERROR(ShareStatus(store_.mesh().world(), status));
  swap_.EndMerge(hash);
  return totals;
}

// --- the gradient that the next step applies -----------------------------------------------------

char* GradientExchange::Pending(int64_t group) {
  return pending_.data() + store_.groups().StoredBegin(group) * width_;
}

absl::StatusOr<void*> GradientExchange::Settle() {
  swap_.mail().FinishWork();  // what is kept of errors of the codec is whole
  if (delay() == 0) return nullptr;
  if (before_ == Before::kTravels) {
    TOROID_ASSIGN_OR_RETURN(totals_, Merge(step_, card_, /*keep=*/true));
    before_ = Before::kSettled;
  }
  return static_cast<void*>(pending_.data());
}

std::vector<double> GradientExchange::numbers() const {
  return {before_ == Before::kSettled ? 1.0 : 0.0, totals_.loss, double(totals_.labels),
          double(totals_.word)};
}

absl::Status GradientExchange::Restore(const std::vector<double>& numbers) {
  if (numbers.size() != 4)
    return absl::DataLossError("the checkpoint's exchange has other numbers");
  before_ = numbers[0] != 0 ? Before::kSettled : Before::kNothing;
  sent_ = -1;
  totals_ = {numbers[1], int64_t(numbers[2]), 0};  // who was told to stop has stopped
  return absl::OkStatus();
}

}  // namespace toroid
