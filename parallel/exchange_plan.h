// What the exchange between a job's pods costs before there is any pod: bytes of each rank, seconds
// on a link, and what of them is not hidden behind computation.
//
// Bytes are those of the wire: codes, scales, and what rank 0s tell each other besides; frames,
// what is sent before the first step and checkpoints are not among them.
//
// Time. A rank sends each rank of another pod B bytes a second, and what is sent comes l seconds
// later. Let c be the seconds that a step computes, and T those that the longest line of a turn
// takes at B. Of gradients some become whole with the head's (and, in a pod of one rank, with a
// codec without scales, rows of the embedding that no token is of), some with each layer's, the
// others at the end: when it is m's turn, there are b_m seconds of the backward left, and T_m is
// what that and all that follows take. Exposed, a step:
//
//   exact      e = max over m of (T_m - b_m) + 2 l       the second l: pod 0's norm, which all take
//   delayed    max(0, T - c, e - c)
//   diloco     (T + l) / H                 each H steps
//   streaming  sum over fragments f of max(0, T_f + l - tau c) / H
//
// and the speed-up of p pods over one is S_p = p c / (c + exposed) (spec A9). Codecs and memory
// copies are taken to cost nothing: a bound, not a forecast of what a busy core can do. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/model/model_config.h"
#include "parallel/exchange_spec.h"
#include "parallel/mesh.h"

namespace toroid {

// The job, as far as the exchange goes.
struct PlannedExchange {
  std::vector<MeshShape> meshes;  // by pod
  int64_t layers = 0;             // trained: the first so many
  bool adafactor = false;         // its update swaps the weights' norms too
  ExchangeSpec spec;
  int64_t tokens = 0;  // of a pod's last micro-batch; 0: not known, as many as the vocabulary has
};

// Bytes of one rank in one turn: of exact and delayed a step's gradients, of diloco the weights, of
// streaming a fragment.
struct TurnBytes {
  int64_t sent = 0, received = 0;  // with all ranks of all other pods
  int64_t line = 0;                // the most with one of them, in one direction
  int64_t first = 0;               // of the line's gradients what is whole with the head's, and
  int64_t last = 0;  // behind the lowest layer's; all else becomes whole layer by layer
  bool operator==(const TurnBytes&) const = default;
};

// [turn][rank], of pod `pod`. Layers are alike. REQUIRES a valid spec and mesh.size() > 1 pods.
std::vector<std::vector<TurnBytes>> PlanTurns(const ModelConfig& config, const PlannedExchange& job,
                                              int64_t pod);
// Steps from one turn of a fragment to its next: 1, or the spec's `every`.
int64_t StepsOfRound(const ExchangeSpec& spec);

struct PodLinkSpeed {
  double bytes_per_s = 0;  // of a rank to each of the others
  double latency_s = 0;
};
struct StepSeconds {
  double step = 0;      // that a pod by itself takes
  double backward = 0;  // of these, while gradients become whole
  double head = 0;      // of these, until the head's is
};

struct ExchangeCost {
  ExchangeSpec spec;
  int64_t turn_bytes = 0;  // of the rank that sends most, in the largest turn
  double step_bytes = 0;   // of that rank, mean over steps
  double turn_s = 0;       // of the largest turn, on the link
  double exposed_s = 0;    // a step
  double speed_up = 0;     // of all pods over one
  double needed_bytes_per_s =
      0;  // at which nothing but latency is exposed; exact: but what becomes
          // whole at the end, and the head's time; diloco: 3% of a step
  // The fewest steps of a round (diloco, streaming), and from sending to applying (streaming), that
  // hide it: of diloco at 3% of the time.
  std::optional<int64_t> least_every, least_tau;
};

// Of the pod for which it is longest.
ExchangeCost CostOf(const ModelConfig& config, const PlannedExchange& job, const PodLinkSpeed& link,
                    const StepSeconds& seconds);

// Share of its time that a pod may wait for the others and still be said to hide the exchange: 1.94
// of two pods, the loss that Pathways' two islands had (97%).
inline constexpr double kHidden = 0.03;

// The job's exchange with as little changed as hides it on the link, the first of: as it is; with
// the codec BF16, then INT8; delayed; streaming with the least tau and `every` (of its own or four
// fragments); diloco with the least `every`. Nothing if none does.
std::optional<ExchangeCost> HiddenExchange(const ModelConfig& config, const PlannedExchange& job,
                                           const PodLinkSpeed& link, const StepSeconds& seconds);

}  // namespace toroid
