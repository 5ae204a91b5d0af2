// Where each parameter of a model lies in its mapped files, whatever the format: the one thing that
// loading, describing and fingerprinting read.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "core/model/model_config.h"
#include "kernels/dtype.h"

namespace toroid {

struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;      // [rows, cols], or [size] of a vector
  absl::Span<const uint8_t> data;  // in the mapping of files[file], as stored
  int64_t file = 0;                // index into ModelSource::files
  // Above 0: the rows (of a bias: the elements) of each of so many heads are interleaved for a RoPE
  // that turns neighbours: stored row 2 b + a of a head is our row a K/2 + b, a in {0, 1}.
  int64_t interleaved_heads = 0;
  // Above 0: `data` is a matrix [cols(), stored_cols] of which our row r is column
  // first_stored_col + r: GPT-2 keeps products transposed, and those of Q, K and V side by side.
  int64_t stored_cols = 0, first_stored_col = 0;

  int64_t cols() const { return shape.back(); }
  int64_t rows() const { return shape.size() == 1 ? 1 : shape.front(); }
};

// By parameter name (core/model/params.h). Ordered, so that every rank walks it alike.
using TensorIndex = std::map<std::string, StoredTensor>;

// OK if the index holds every parameter of the model with its shape and nothing else. The error
// names the first missing, extra or misshapen tensor and `where` (the file or directory).
absl::Status CheckTensors(const ModelConfig& config, const TensorIndex& tensors,
                          const std::string& where);

}  // namespace toroid
