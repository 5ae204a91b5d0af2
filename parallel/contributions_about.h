// What the numbers in a folder of contributions are of: about.json of merge_history.h. With it
// alone a merge can be made again, on any machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/model/model_config.h"
#include "kernels/dtype.h"
#include "parallel/exchange_spec.h"
#include "parallel/mesh.h"
#include "parallel/optimizer.h"

namespace toroid {

// How gradients become weights, exact and delayed, from a launch's first step on.
struct ContributionsUpdate {
  OptimizerSpec optimizer;
  double max_norm = 0;   // of the clip
  int64_t updates = 0;   // made before
  bool pending = false;  // delayed: what is on its way is applied by the first step
  bool on_gpus = false;  // their last bits are not a CPU's
};

struct ContributionsAbout {
  ModelConfig model;
  int64_t layers = 0;  // the first so many
  DType dtype = DType::kF32;
  int64_t pod = 0;                // whose they are
  std::vector<MeshShape> meshes;  // by pod
  ExchangeSpec exchange;
  // It began with the state of a pod that trained meanwhile: the merges before are not in its log.
  bool joined = false;
  // Of gradients; none: written by a version that did not say.
  std::optional<ContributionsUpdate> update;
};

inline constexpr int64_t kMostAbout = int64_t{1} << 24;  // bytes of its text

std::string ToText(const ContributionsAbout& about);
// DataLoss naming the file `name` and what is wrong in it.
absl::StatusOr<ContributionsAbout> ParseContributionsAbout(absl::string_view text,
                                                           const std::string& name);

}  // namespace toroid
