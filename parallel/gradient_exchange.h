// GradientExchange: all pods make one update from the gradient of the whole batch (spec A9).
//
//   exact    step k applies   G(k) = sum_q n_q g_q(k) / sum_q n_q
//   delayed  step k applies   G(k - 1), so that its way has the time of a whole step; the first
//            step applies nothing
//
// where g_q is the mean gradient over the n_q labels of pod q. Each group is on its way as soon as
// its gradient is whole, while the backward still runs; of the embedding first the rows that are
// whole before the others (ParamStore::RowsWhole). Applied is what all pods have bit for bit,
// so that weights stay equal; a step that one pod would skip is skipped by all.
//
// SPMD over the rank's own world. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/pod_swap.h"

namespace toroid {

// What the pods' cards of a step say together.
struct PodTotals {
  double loss = 0;     // mean over labels
  int64_t labels = 0;  // of all pods
  int64_t word = 0;    // the largest that any pod said
};

class GradientExchange {
 public:
  explicit GradientExchange(PodSwap& swap);
  ~GradientExchange();

  // The step begins; `labels`: of this pod's part of the batch, 0: it has no gradient.
  void Begin(int64_t step, int64_t labels);
  // The store's gradient of this group is whole. Of each group once, unless there are no labels.
  void Contribute(int64_t group);
  // Before that, the same of rows of it, once at most.
  void ContributeRows(int64_t group, const StoredRows& rows);
  // The step's own gradient is whole. Puts the gradient to apply into the store and tells what it
  // is of: labels 0: nothing is to be applied. loss: of this pod, mean; word: told to all pods.
  // Collective. Waits for pods that are away; errors are PodMail::Await's.
  absl::StatusOr<PodTotals> Finish(double loss, int64_t word);
  // Steps from the one whose gradient the last Finish put there to its own; 0: there was none.
  int64_t staleness() const { return staleness_; }

  // --- delayed: the gradient that the next step applies, for checkpoints
  // Waits until it is here: the store's stored ranges, zero if there is none. Null: not delayed.
  // Collective.
  absl::StatusOr<void*> Settle();
  void* pending() { return delay() == 0 ? nullptr : pending_.data(); }
  // Labels of what is here for the next step; 0: it applies nothing, or it travels.
  int64_t settled_labels() const { return before_ == Before::kSettled ? totals_.labels : 0; }
  void* residual() { return residual_.empty() ? nullptr : residual_.data(); }
  int64_t state_bytes() const { return int64_t(pending_.size() + residual_.size()); }
  int64_t buffer_bytes() const { return int64_t(reading_.size() + merged_.size()); }
  // Numbers that go with it; Restore takes them back when pending() and residual() were filled.
  std::vector<double> numbers() const;
  absl::Status Restore(const std::vector<double>& numbers);

 private:
  int64_t delay() const { return swap_.spec().mode == ExchangeSpec::Mode::kDelayed; }
  char* Pending(int64_t group);
  void* Read(int64_t group, const std::vector<Range>& elements);
  void* Residual(int64_t group);
  bool on_host() const { return store_.stream().cpu != nullptr; }
  absl::StatusOr<PodTotals> Totals(int64_t step, const std::vector<double>& own);
  absl::StatusOr<PodTotals> Merge(int64_t step, const std::vector<double>& card, bool keep);

  PodSwap& swap_;
  ParamStore& store_;
  const Stream read_s_;  // on which gradients leave the device
  const int64_t width_;  // bytes of an element
  int64_t step_ = 0, labels_ = 0, staleness_ = 0;
  // Of the largest group, on the mail's thread and on ours: what leaves the device and comes back.
  // Where its memory is the host's, shares are encoded and means are made where they lie.
  std::vector<char> reading_, merged_;
  std::vector<char> residual_;  // of all groups; error feedback

  // delayed: of the step before.
  enum class Before { kNothing, kTravels, kSettled };
  Before before_ = Before::kNothing;
  int64_t sent_ = -1;          // that step; -1: not known yet, it was restored
  std::vector<double> card_;   // own, while it travels
  std::vector<char> pending_;  // all groups, once settled
  PodTotals totals_;           // the same
};

}  // namespace toroid
