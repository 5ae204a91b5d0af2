#include "core/io/tensor_index.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/model/params.h"

namespace toroid {

absl::Status CheckTensors(const ModelConfig& config, const TensorIndex& tensors,
                          const std::string& where) {
  absl::flat_hash_set<std::string> known;
  for (const ParamSpec& spec : ParamTable(config)) {
    if (!spec.alias.empty()) continue;
    known.insert(spec.name);
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": tensor ", spec.name, " is missing"));
    }
    const bool vector = spec.group == "norm" || spec.group == "bias";
    const std::vector<int64_t> shape =
        vector ? std::vector<int64_t>{spec.cols} : std::vector<int64_t>{spec.rows, spec.cols};
    if (found->second.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": tensor ", spec.name, " has shape [", absl::StrJoin(found->second.shape, ", "),
          "], the configuration says [", absl::StrJoin(shape, ", "), "]"));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!known.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": tensor ", name, " is no parameter of a ", config.architecture, " model"));
    }
  }
  return absl::OkStatus();
}

}  // namespace toroid
