// Models that need no file: shapes from a built-in table, weights as a function of (seed,
// parameter, element). Every value is a float32, so that float32 and float64 runs see the same
// weights. A value depends on the element's index in the whole parameter, never on the rank that
// asks. There are two kinds.
//
// Random models (OpenRandom) are for tests and benchmarks: what they say means nothing. A matrix
// element is normal(0, ParamSpec::init_deviation), a gain 1 + normal(0, 0.1), a bias normal(0,
// 0.1): gains and biases differ from 1 and 0 so that one which is forgotten shows. Of NAME:TYPE
// matrices are these numbers stored in that type (core/io/store_row.h), where their rows have whole
// blocks.
//
// Presets (OpenPreset) are what training begins with. Gains are 1, biases 0, a matrix element is
// normal(0, deviation):
//   architecture palm   embedding 1, other [outputs, n] 1 / sqrt(n)      Chowdhery et al.
//   2204.02311 others              0.02; of L layers Wo and W2, which add to the    Radford et al.
//   2019 (GPT-2),
//                       residual, 0.02 / sqrt(2 L)                       as GPT-3 and most since
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

// The same of a preset's; and the table above, 0 for vectors.
void InitialRow(uint64_t seed, const ModelConfig& config, const ParamSpec& spec, int64_t row,
                int64_t col_begin, int64_t count, float* out);
double InitialDeviation(const ModelConfig& config, const ParamSpec& spec);

}  // namespace toroid
