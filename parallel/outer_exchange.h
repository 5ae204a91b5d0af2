// OuterExchange: pods train by themselves and swap what that made of the weights (spec A10).
//
//   DiLoCo (Douillard et al. 2311.08105, algorithm 1): after each H = `every` steps
//     D = sum_q n_q (theta' - theta_q) / sum_q n_q       theta': the outer weights, theta_q: pod
//     q's theta' = OuterStep(theta', D)                      kernels/outer_step.h theta_q = theta'
//   Streaming (Douillard et al. 2501.18512, algorithm 2): the same for one fragment of the layers
//   at a time. Fragment f of P is sent when t = (f + 1) H / P steps of a round are done, and
//   applied tau steps later:
//     theta_q = alpha theta_q + (1 - alpha) theta'
//
// The outer step is made when the shares are merged: when they are due, or before a checkpoint.
// n_q are the labels that pod q has trained on since it last sent the fragment. DiLoCo is streaming
// with P = 1, tau = 0, alpha = 0. Outer weights and momentum are the same on all pods bit for bit;
// they stay on the host, sharded as the store's. With alpha the difference to a pod's own weights
// stays in its next D. Fragment f has the layers f, f + P, ..; the embedding and the head go with
// fragment 0. One fragment at most is on its way.
//
// Policy `continue`: a pod that is behind leaves out steps once the others have waited about a
// second for it (Behind). One that does not, as a single step takes too long, is told of
// (PodSwap::Gather) after
//
//   2 s + 8 (tau + 1) t        t: the longest of the teller's own last steps
//
// A pod whose steps take k t, and that does leave some out, holds the others up for less than
//   1 s + (2 k tau + k - tau) t
// (that second; the step during which it does not look; those behind its share, which it does not
// leave out): up to k = 4 within 1 s + 8 (tau + 1) t. 1 s more is for the steps that it leaves out,
// which take some time too. t is the longest because checkpoints are part of steps.
//
// SPMD over the rank's own world. One thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/pod_swap.h"

namespace toroid {

class OuterExchange {
  using Clock = std::chrono::steady_clock;

 public:
  // Of the `fragments`, the one that a group belongs to.
  static int64_t FragmentOf(const ParamGroups& groups, int64_t fragments, int64_t group);

  // The store's weights are where the outer weights begin.
  explicit OuterExchange(PodSwap& swap);
  ~OuterExchange();

  // Before the weights change: until what was to be sent of them has been read.
  void Begin(int64_t step) { Expect(step); }
  void FinishReading() { swap_.mail().FinishWork(); }
  // `steps` are done, the last with so many labels; word: told with the next fragment. Sends and
  // applies what is due. Collective. Waits for pods that are away; errors are PodMail::Await's.
  absl::Status After(int64_t steps, int64_t labels, int64_t word);
  // The largest word that came with a fragment that was applied in the last After; 0: none was.
  int64_t heard() const { return heard_; }
  // Steps from sending to applying of the fragment that the last After applied; 0: it applied none.
  int64_t staleness() const { return staleness_; }

  // --- for checkpoints, host memory of the store's stored ranges, one behind the other
  void BeginHere();  // with the store's weights, as at construction
  // Restored from another pod's: this pod's own weights are the outer ones, and it has trained on
  // nothing yet.
  void Joined();
  // Whether all others have long sent what this pod, `steps` done, is to send next: it holds them
  // up. Rank 0's.
  bool Behind(int64_t steps);
  void* outer_weights() { return outer_.data(); }
  void* momentum() { return momentum_.data(); }
  void* residual() { return residual_.empty() ? nullptr : residual_.data(); }
  int64_t state_bytes() const {
    return int64_t(outer_.size() + momentum_.size() + residual_.size());
  }
  int64_t buffer_bytes() const { return int64_t(buffer_.size()); }
  // The fragment that is on its way is waited for, and its outer step made. Collective.
  absl::Status Settle();
  // Numbers that go with it; Restore takes them back, when all memory above was filled.
  std::vector<double> numbers() const;
  absl::Status Restore(const std::vector<double>& numbers);
  // As many as numbers().
  int64_t count() const { return 4 + int64_t(labels_.size()); }

 private:
  struct Flight {
    int64_t fragment = 0, sent = 0;  // at this number of steps
    bool settled = false;            // its outer step is made
    std::vector<double> card;        // own
  };
  char* At(std::vector<char>& all, int64_t group) {
    return all.data() + store_.groups().StoredBegin(group) * width_;
  }
  bool HasGroup(int64_t fragment, int64_t group) const {
    return FragmentOf(store_.groups(), spec_.fragments, group) == fragment;
  }
  bool IsAwaited(int64_t steps, Clock::time_point now);
  void CountStep();
  absl::Status SendAndApply(int64_t steps, int64_t labels, int64_t word);
  bool IsDue(int64_t fragment, int64_t steps) const;
  void Expect(int64_t step);
  void Send(int64_t fragment, int64_t steps, int64_t word);
  absl::Status Merge();
  absl::Status Apply();
  template <typename T>
  void Step(int64_t group);
  template <typename T>
  void Mix(int64_t group);
  template <typename T>
  static void Subtract(int64_t n, const char* outer, char* own);

  PodSwap& swap_;
  ParamStore& store_;
  const ExchangeSpec spec_;
  const Stream read_s_;
  const int64_t width_;
  ThreadPool pool_;
  std::vector<char> outer_, momentum_, residual_;  // all groups
  // Of the largest group, so no more than fragment 0: what is read to be sent, on the mail's
  // thread; once the last group of a fragment was read (Gather), the mean delta and own weights.
  std::vector<char> buffer_;
  std::vector<double> labels_;  // by fragment, since it was last sent
  std::optional<Flight> flight_;
  int64_t word_ = 0, heard_ = 0, staleness_ = 0;
  // Behind: since when the others' part of which step is here; how long a step takes.
  int64_t awaited_by_others_ = -1;
  bool behind_ = true;
  Clock::time_point since_, asked_;
  Clock::duration step_time_{0};
  // Of this pod's own steps: since when the present one runs, and what had been waited until then;
  // how long the longest of late took.
  std::optional<Clock::time_point> begun_;
  double waited_ = 0, longest_ = 0;  // seconds
};

}  // namespace toroid
