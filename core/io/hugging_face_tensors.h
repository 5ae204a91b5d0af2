// What the tensors of a Hugging Face file hold of a model's parameters. Llama and its kin keep each
// parameter under its own name; GPT-2 has other names, stores products as [inputs, outputs] and
// those of Q, K and V as one. Written in one place, read by import and export. Pure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "core/io/tensor_index.h"
#include "core/model/params.h"

namespace toroid {

struct HuggingFaceTensor {
  std::string name;
  std::vector<int64_t> shape;    // as the file has it
  std::vector<ParamSpec> parts;  // one after the other, of the same number of inputs
  bool transposed = false;       // [inputs, outputs]: a part's rows are columns, side by side
};

// All parameters that are stored, in the table's order of their first ones.
std::vector<HuggingFaceTensor> HuggingFaceTensors(const ModelConfig& config);

// True of what older files keep beside the weights and the configuration says: rotary frequencies,
// GPT-2's masks.
bool IsNoWeight(const ModelConfig& config, absl::string_view name);

// From an index by the names of the file to one by those of the parameters; what has no parameter
// stays, for CheckTensors. InvalidArgument naming `where` and a tensor that is missing, misshapen
// or there under both of its names (GPT-2's come with "transformer." in front, or without).
absl::Status NameAsParameters(const ModelConfig& config, const std::string& where,
                              TensorIndex& tensors);

}  // namespace toroid
