// Models that need no file: shapes from a built-in table, weights as a function of (seed,
// parameter, element). For tests and benchmarks: what they say means nothing.
//
// A matrix element is normal(0, ParamSpec::init_deviation), a gain 1 + normal(0, 0.1), a bias
// normal(0, 0.1): gains and biases differ from 1 and 0 so that one which is forgotten shows. Every
// value is a float32, so that float32 and float64 runs see the same weights. A value depends on the
// element's index in the whole parameter, never on the rank that asks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/model/model_config.h"
#include "core/model/params.h"

namespace toroid {

// The shapes by name, in the order in which errors list them.
const std::vector<ModelConfig>& RandomShapes();

// NotFound listing the names. Tokens 0..255 of every shape are bytes.
absl::StatusOr<ModelConfig> RandomShape(const std::string& name);

// Elements [col_begin, col_begin + count) of row `row` of a parameter.
void RandomRow(uint64_t seed, const ParamSpec& spec, int64_t row, int64_t col_begin, int64_t count,
               float* out);

}  // namespace toroid
