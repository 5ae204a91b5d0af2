#include "core/train/flops.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "core/check.h"
#include "core/model/params.h"

namespace toroid {
namespace {

// Parameters of matrices, by what is done with them.
struct Matrices {
  double all = 0;     // that products multiply by
  double inputs = 0;  // Wq Wk Wv W1 W3: their products are computed again
  double output = 0;  // Wo
};

Matrices CountMatrices(const ModelConfig& config, int64_t layers) {
  Matrices count;
  for (const ParamSpec& spec : ParamTable(config)) {
    const double size = double(spec.rows) * double(spec.cols);
    // A tied head multiplies by the embedding: its own row of the table counts, an alias or not.
    if (spec.rows == 1 || spec.group == "embedding" || spec.layer >= layers) continue;
    count.all += size;
    if (spec.layer < 0 || absl::EndsWith(spec.name, "down_proj.weight")) continue;
    (absl::EndsWith(spec.name, "o_proj.weight") ? count.output : count.inputs) += size;
  }
  return count;
}

}  // namespace

TrainingFlops FlopsOf(const ModelConfig& config, int64_t layers, Remat remat,
                      const std::vector<std::vector<int64_t>>& documents) {
  TOROID_CHECK(layers > 0 && layers <= config.layers);
  double tokens = 0, keys = 0;  // keys that a head's queries are multiplied by, over all layers
  for (const std::vector<int64_t>& pack : documents) {
    for (const int64_t length : pack) {
      tokens += double(length);
      for (int64_t layer = 0; layer < layers; ++layer) {
        const int64_t window = config.window(layer);
        keys += double(length) * double(window > 0 ? std::min(window, length) : length);
      }
    }
  }
  const double squares = keys * double(config.query_heads * config.head_dim);
  const Matrices matrices = CountMatrices(config, layers);
  TrainingFlops flops;
  flops.model = 6 * matrices.all * tokens + 12 * squares;
  flops.hardware = flops.model + 2 * squares;
  if (remat != Remat::kNone) flops.hardware += 2 * matrices.inputs * tokens;
  if (remat == Remat::kBlock) {
    flops.hardware += 4 * squares;
    if (!config.parallel_block) flops.hardware += 2 * matrices.output * tokens;
  }
  return flops;
}

}  // namespace toroid
