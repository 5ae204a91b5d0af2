// PodExchange: one rank's part in training one model on several pods: what its step gives to the
// other pods, what of theirs it takes, and when. The modes are pages of their own,
// gradient_exchange.h (exact, delayed) and outer_exchange.h (diloco, streaming); how values travel
// is pod_swap.h.
//
// Pods are 0 .. pods - 1. Who is away is waited for, with a sentence for the user (policy `halt`),
// or left out once a view says so (`continue`, membership_view.h). Pods may have unlike meshes.
// SPMD over the rank's own world: calls that may fail return the same status on all its ranks. One
// thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/checkpoint.h"
#include "parallel/gradient_exchange.h"
#include "parallel/optimizer.h"
#include "parallel/outer_exchange.h"
#include "parallel/pod_swap.h"
#include "parallel/rank_memory.h"
#include "parallel/state_copy.h"

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
  // Pods whose shares were in the last merge.
  int64_t taking_part() const { return int64_t(swap_->taking_part().size()); }

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
  // After the update, or where it would have been: `steps` are done. diloco, streaming: sends and
  // applies weights that are due.
  absl::Status After(int64_t steps);
  // As ParamStore::SquaredSums; where all pods make the same update, one pod's, so that meshes
  // whose sums round otherwise decide alike. An error leaves the pod's own and is in status(), the
  // same on all ranks.
  std::vector<double> SquaredSums(ParamStore::Kind kind);
  absl::Status status() const { return failed_; }

  // --- what pods tell each other besides: a word goes with the next step's exchange, and all pods
  // hear the largest after the same step.
  void Say(int64_t word) { word_ = word; }
  int64_t heard() const { return heard_; }
  // Before the first step: the numbers of all pods, as many of each. Waits for the other pods.
  absl::StatusOr<std::vector<std::vector<double>>> Swap(const std::vector<double>& own,
                                                        absl::string_view what);

  // --- pods that come, policy `continue` (membership_view.h)
  // Launches are to be taken in before the next step.
  bool comes() const { return swap_->comes(); }
  // Takes them in, `steps` done: what is on its way is waited for. If one is to get this pod's
  // state it is given it, and text(), which is asked for then, with the state's hash. Collective;
  // all pods do it behind the same step.
  absl::Status TakeIn(int64_t steps, const std::function<std::string()>& text);
  // This pod was taken in: the state that it was given, into the store and here, but for what went
  // with the text; the text. Collective. Unavailable: who gave it is lost. DataLoss: what came has
  // another hash than what was given.
  absl::StatusOr<std::string> TakeState();
  // With the numbers of that text.
  absl::Status RestoreJoined(const std::vector<double>& numbers);
  int64_t giver() const { return swap_->giver(); }
  // diloco, streaming: the others wait for this pod, `steps` done, and it had better leave out its
  // part of the next. Rank 0's, and false unless the others go on without a pod.
  bool Behind(int64_t steps) {
    return outer_ != nullptr && swap_->goes_on() && outer_->Behind(steps);
  }

  // --- for checkpoints
  // What a checkpoint holds besides the store, and where it is: this waits until all of it is here.
  // Collective.
  absl::StatusOr<std::vector<HostKind>> State();
  static std::vector<std::string> StateNames(const ExchangeSpec& spec);
  std::vector<double> numbers() const;
  // Where LoadCheckpoint puts it, and, when it has, with the numbers that went with it.
  std::vector<HostKind> RoomForState();
  absl::Status Restore(const std::vector<double>& numbers);
  // The store was loaded from what no exchange was part of: it begins with these weights.
  absl::Status BeginHere();
  // Of what all pods have alike: the weights, or the outer weights. Collective.
  uint64_t CommonHash();

  // --- the history of merges (merge_history.h)
  // From now on, `steps` done. `state` is as Restore left it; directory: of this pod's run.
  struct RecordOptions {
    std::string directory;
    int64_t steps = 0;
    bool keep = false;
    std::function<void(const std::string&)> alarm;
    // How the trainer makes weights of gradients.
    OptimizerSpec optimizer;
    double max_norm = 0;
    int64_t updates = 0;
  };
  void Record(FileSystem& files, const RecordOptions& options);
  // Before a checkpoint: the log is durable up to it.
  void SyncRecord() {
    if (swap_->history() != nullptr) swap_->history()->Sync();
  }

  // Steps between sending and applying what the last step applied; 0: it applied nothing.
  int64_t staleness() const {
    return gradients_ != nullptr ? gradients_->staleness() : outer_->staleness();
  }

  // --- counted, of this rank
  int64_t bytes_sent() const { return swap_->mail().link().counters().payload_sent; }
  double seconds_waited() const { return swap_->mail().waited_seconds(); }
  // Messages that came too late, or of a launch that takes part no more.
  int64_t dropped() const { return swap_->mail().late(); }
  // Streams to other pods that broke and went on: cuts of the link that were survived.
  int64_t reconnects() const { return swap_->mail().link().counters().reconnects; }
  // The most that the exchange takes on a rank's host. State: outer weights and momentum, or the
  // gradient on its way, and what the codec left out. Queues: own shares until they are merged, one
  // message to each peer, and from each what of its present and of its next turn is here. go_on: a
  // copy of the state is given to each pod that comes, here to one, which holds it in its queues
  // then and gives to nobody. on_host: gradients lie there.
  static ExchangeBytes HostBytes(const ParamStore& store, const ExchangeSpec& spec, int64_t pods,
                                 bool go_on, bool on_host);
  // What this rank's takes: state and buffers as they are, queues the most ever, given all that
  // was.
  ExchangeBytes host_bytes() const;

 private:
  PodExchange(std::unique_ptr<PodSwap> swap, const ModelConfig& config, int64_t layers)
      : config_(config), layers_(layers), swap_(std::move(swap)) {}

  const ModelConfig config_;
  const int64_t layers_;
  std::unique_ptr<PodSwap> swap_;
  std::unique_ptr<GradientExchange> gradients_;  // of the modes exact and delayed, else
  std::unique_ptr<OuterExchange> outer_;
  std::vector<HostKind> Named(const std::vector<void*>& values) const;
  CopiedState Copied();
  std::string About(FileSystem& files, const RecordOptions& asked);
  absl::Status WriteBegin(ContributionWriter& writer);

  int64_t step_ = 0, labels_ = 0, swaps_ = 0;
  int64_t word_ = 0, heard_ = 0;
  absl::Status failed_;  // of SquaredSums
};

}  // namespace toroid
