#include "launcher/training_spec.h"

#include <utility>
#include <variant>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/job_spec.h"
#include "launcher/options.h"

namespace toroid {
namespace {

// A flag beats the job, and the job what is in the environment.
bool Given(const Arguments& arguments, const char* flag) {
  return arguments.OriginOf(flag) == Origin::kFlag;
}

}  // namespace

absl::StatusOr<JobSpec> TrainingSpec(const Arguments& arguments, const std::string& path) {
  std::vector<std::string> settings = arguments.Texts("--set");
  if (arguments.Has("--on-pool")) {
    settings.push_back(absl::StrCat("on_pool=", arguments.Text("--on-pool")));
  }
  TOROID_ASSIGN_OR_RETURN(JobSpec spec, ReadJobSpec(path, settings));
  if (!std::holds_alternative<TrainTask>(spec.task)) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a training job: ", path, ": give it train { ... }, or submit it"));
  }
  if (Given(arguments, "--mesh")) {
    TOROID_ASSIGN_OR_RETURN(spec.placement.mesh, ParseMeshWish(arguments.Text("--mesh")));
  }
  if (Given(arguments, "--threads")) {
    const int64_t threads = arguments.Count("--threads");
    if (threads > 4096) {
      return UsageError(absl::StrCat("bad value of --threads: ", threads, ": give 0 to 4096"));
    }
    spec.placement.load.threads = static_cast<int>(threads);
  }
  LoadRequest& load = spec.placement.load;
  if (Given(arguments, "--layout")) {
    TOROID_ASSIGN_OR_RETURN(load.layout, ParseLayoutRule(arguments.Text("--layout")));
  }
  if (Given(arguments, "--compute")) load.compute = ComputeNamed(arguments.Text("--compute"));
  if (Given(arguments, "--device")) spec.device = DeviceNamed(arguments.Text("--device"));
  load.device = spec.device;
  return spec;
}

absl::StatusOr<MeshWish> MeshOfPod(const Placement& placement, int64_t pod, int64_t pods) {
  for (const auto& [name, wish] : placement.pod_meshes) {
    int64_t number = -1;
    if (absl::SimpleAtoi(name, &number) && number >= 0 && number < pods) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("pod_mesh: no such pod: ", name, ": pods that are started by hand are 0 to ",
                     pods - 1, ": name it by its number, or give --mesh"));
  }
  return MeshOn(absl::StrCat(pod), placement.mesh, placement.pod_meshes);
}

absl::StatusOr<MeshShape> MeshHere(const MeshWish& wish, int64_t world_size) {
  std::string text;
  for (const auto& [axis, size] : {std::pair("data", wish.data), std::pair("ring", wish.ring),
                                   std::pair("tensor", wish.tensor)}) {
    if (size == 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : ",", axis, "=",
                    size == MeshWish::kRest ? std::string("*") : absl::StrCat(size));
  }
  return ParseMesh(text, world_size, "data");
}

}  // namespace toroid
