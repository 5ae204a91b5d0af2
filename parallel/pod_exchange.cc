#include "parallel/pod_exchange.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {

absl::StatusOr<std::unique_ptr<PodExchange>> PodExchange::Create(PodLink& link,
                                                                 const Options& options,
                                                                 const ModelConfig& config,
                                                                 int64_t layers,
                                                                 ParamStore& store) {
  TOROID_ASSIGN_OR_RETURN(
      std::unique_ptr<PodSwap> swap,
      PodSwap::Create(link, options.pods, config, layers, store, options.swap, options.watch));
  std::unique_ptr<PodExchange> exchange(new PodExchange(std::move(swap)));
  exchange->gradients_ = std::make_unique<GradientExchange>(*exchange->swap_);
  return exchange;
}

void PodExchange::Begin(int64_t step, int64_t labels) {
  step_ = step;
  labels_ = labels;
  gradients_->Begin(step, labels);
}

absl::StatusOr<PodExchange::Applied> PodExchange::Finish(double loss) {
  TOROID_ASSIGN_OR_RETURN(const PodTotals totals, gradients_->Finish(loss, word_));
  heard_ = totals.word;
  if (swap_->spec().mode == ExchangeSpec::Mode::kExact) {
    return Applied{totals.loss, totals.labels, totals.labels > 0};
  }
  return Applied{loss, labels_, totals.labels > 0};
}

std::vector<double> PodExchange::SquaredSums(ParamStore::Kind kind) {
  const bool gradients = kind == ParamStore::Kind::kGradients;
  std::vector<double> sums = swap_->store().SquaredSums(kind);
  const absl::Status taken =
      swap_->TakeOfFirstPod(gradients ? PodSwap::kGradientSquares : PodSwap::kWeightSquares, step_,
                            sums, absl::StrCat("the norm of step ", step_));
  failed_.Update(taken);
  return sums;
}

absl::StatusOr<std::vector<std::vector<double>>> PodExchange::Swap(const std::vector<double>& own,
                                                                   absl::string_view what) {
  return swap_->SwapCards(PodSwap::kResume, swaps_++, own, what);
}

int64_t PodExchange::host_bytes() const {
  return swap_->host_bytes() + gradients_->host_bytes() + swap_->mail().kept_bytes_peak();
}

}  // namespace toroid
