// What the pods of one job send each other, and when it is applied: the exchange of a job's spec.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/exchange_codec.h"

namespace toroid {

struct ExchangeSpec {
  enum class Mode {
    kExact,   // gradients, each step: all pods make the update of the whole batch
    kDelayed  // the same one step late, so that the link has a whole step's time
  };
  Mode mode = Mode::kExact;
  Codec codec = Codec::kFp32;
  bool stochastic = false;      // rounding of the codec; else to nearest
  bool error_feedback = false;  // what a code leaves out is added to the next
  bool operator==(const ExchangeSpec&) const = default;
};

const char* ExchangeModeName(ExchangeSpec::Mode mode);

// "exact, codec int8, error feedback": what all pods must have alike.
std::string ToString(const ExchangeSpec& spec);

}  // namespace toroid
