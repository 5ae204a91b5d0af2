// PaLM's answer to a loss that jumps (Chowdhery et al. 2204.02311, section 5.1): go back to a
// checkpoint about 100 steps before the spike and skip a few hundred batches that cover it; the
// same batches met from other weights do not spike.
//
// A pure state machine: the caller trains, checkpoints and rewinds.
//   1. Observe(rule, loss, state) after each step. A spike is not added to the state.
//   2. On a spike PlanRewind(rule, state, step, checkpoints) says where to and which steps' batches
//      go.
//   3. The caller loads that checkpoint, SpikeState included, and replaces its `rewinds` and its
//      skip list by the plan's. These two must be durable before the next step: a run killed
//      later must not meet the window again.
// The losses come back with the checkpoint, so that the run is judged as one that was started with
// this skip list would be. Every rank sees the same loss, hence decides alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/train/schedule.h"
#include "core/train/skip_list.h"

namespace toroid {

// A loss spikes if it is not finite, or if, with m the median of the last `window` losses and s
// 1.4826 x the median of |loss - m| (the deviation, were they normal),
//   loss > m + max(deviations s, least_rise)
struct SpikeRule {
  int64_t window = 100;
  int64_t least_losses = 20;  // no verdict on finite losses before that many
  double deviations = 8;
  double least_rise = 0.5;  // nats
  // The checkpoint lies at least so many steps before the spike, or as many as there are.
  int64_t rewind_steps = 100;
  int64_t skip_steps = 200;  // batches left out from the checkpoint on; more if the spike is later
  int64_t max_rewinds = 20;
};

// InvalidArgument naming the number that is wrong.
absl::Status Validate(const SpikeRule& rule);

// Saved with the checkpoint, beside the run's skip list.
struct SpikeState {
  std::vector<double> losses;  // at most `window`, oldest first
  int64_t rewinds = 0;
  bool operator==(const SpikeState&) const = default;
};

struct SpikeVerdict {
  bool spike = false;
  double median = 0;
  double threshold = 0;  // infinite before least_losses
};
SpikeVerdict Observe(const SpikeRule& rule, double loss, SpikeState& state);

struct Rewind {
  int64_t to_step = 0;         // the checkpoint's: this many steps are done
  int64_t first = 0, end = 0;  // steps whose batches are left out; first = to_step
  SkipList skipped;            // the run's list, with those batches
  int64_t rewinds = 0;         // this one counted
  int64_t missing = 0;         // steps that even the oldest checkpoint is too young by
};
// `step` spiked, counted from 0; `checkpoints` are the steps of those that can be loaded, 0 among
// them if the run can begin anew. FailedPrecondition if there are none, ResourceExhausted after
// max_rewinds; messages count steps from 1, as metrics do.
absl::StatusOr<Rewind> PlanRewind(const SpikeRule& rule, const SpikeState& state, int64_t step,
                                  std::span<const int64_t> checkpoints, const BatchRamp& ramp,
                                  const SkipList& skipped);

}  // namespace toroid
