// What the pods of one job send each other, and when it is applied: the exchange of a job's spec.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/exchange_codec.h"

namespace toroid {

struct ExchangeSpec {
  enum class Mode {
    kExact,     // gradients, each step: all pods make the update of the whole batch
    kDelayed,   // the same one step late, so that the link has a whole step's time
    kDiLoCo,    // weight deltas, each `every` steps (Douillard et al. 2311.08105)
    kStreaming  // the same a fragment of the layers at a time, late (Douillard et al. 2501.18512)
  };
  Mode mode = Mode::kExact;
  Codec codec = Codec::kFp32;
  bool stochastic = false;      // rounding of the codec; else to nearest
  bool error_feedback = false;  // what a code leaves out is added to the next
  // --- of diloco and streaming
  int64_t every = 100;      // steps of a round
  double outer_rate = 0.7;  // of the outer optimizer, SGD with Nesterov's momentum
  double outer_momentum = 0.9;
  // --- of streaming
  int64_t fragments = 1;  // fragment f has the layers f, f + fragments, ..
  int64_t tau = 0;        // steps from sending a fragment to applying it
  double alpha = 0;       // share of a pod's own weights when a fragment is applied

  bool gradients() const { return mode == Mode::kExact || mode == Mode::kDelayed; }
  bool operator==(const ExchangeSpec&) const = default;
};

const char* ExchangeModeName(ExchangeSpec::Mode mode);

// "diloco every 100, outer rate 0.7, momentum 0.9, codec int8": what all pods must have alike.
std::string ToString(const ExchangeSpec& spec);

// InvalidArgument naming the number that is out of range. Pure.
absl::Status Validate(const ExchangeSpec& spec);

}  // namespace toroid
