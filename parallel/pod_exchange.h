// PodExchange: one rank's part in training one model on several pods: what its step gives to the
// other pods, what of theirs it takes, and when. The modes exact and delayed are a page of their
// own, gradient_exchange.h; how values travel is pod_swap.h.
//
// Pods are 0 .. pods - 1 and all take part: who is away is waited for (policy `halt`), with a
// sentence for the user. Pods may have unlike meshes. SPMD over the rank's own world: calls that
// may fail return the same status on all its ranks. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/gradient_exchange.h"
#include "parallel/pod_swap.h"

namespace toroid {

class PodExchange {
 public:
  struct Options {
    int64_t pods = 1;
    PodSwap::Options swap;
    PodMail::Watch watch;
  };
  // The store's weights are loaded. Meets the other pods (PodSwap::Create, whose errors these are).
  // REQUIRES a valid spec; `link` and `store` outlive this.
  static absl::StatusOr<std::unique_ptr<PodExchange>> Create(PodLink& link, const Options& options,
                                                             const ModelConfig& config,
                                                             int64_t layers, ParamStore& store);

  int64_t pods() const { return swap_->pods(); }
  int64_t pod() const { return swap_->pod(); }

  // --- a step
  // The step begins; labels: of this pod's part of the batch.
  void Begin(int64_t step, int64_t labels);
  struct Applied {
    double loss = 0;      // exact: of the whole batch; else of this pod's part
    int64_t labels = 0;   // the same
    bool update = false;  // there is a gradient to apply, in the store
  };
  // The pod's gradient is whole. loss: its mean.
  absl::StatusOr<Applied> Finish(double loss);
  // As ParamStore::SquaredSums; where all pods make the same update, pod 0's, so that meshes whose
  // sums round otherwise decide alike. An error leaves the pod's own and is in status(), the same
  // on all ranks.
  std::vector<double> SquaredSums(ParamStore::Kind kind);
  absl::Status status() const { return failed_; }

  // --- what pods tell each other besides: a word goes with the next step's exchange, and all pods
  // hear the largest after the same step.
  void Say(int64_t word) { word_ = word; }
  int64_t heard() const { return heard_; }
  // Before the first step: the numbers of all pods, as many of each. Waits for the other pods.
  absl::StatusOr<std::vector<std::vector<double>>> Swap(const std::vector<double>& own,
                                                        absl::string_view what);

  // --- counted
  int64_t bytes_sent() const { return swap_->mail().link().counters().payload_sent; }
  double seconds_waited() const { return swap_->mail().waited_seconds(); }
  int64_t host_bytes() const;

 private:
  explicit PodExchange(std::unique_ptr<PodSwap> swap) : swap_(std::move(swap)) {}

  std::unique_ptr<PodSwap> swap_;
  std::unique_ptr<GradientExchange> gradients_;  // of the modes exact and delayed
  int64_t step_ = 0, labels_ = 0, swaps_ = 0;
  int64_t word_ = 0, heard_ = 0;
  absl::Status failed_;  // of SquaredSums
};

}  // namespace toroid
