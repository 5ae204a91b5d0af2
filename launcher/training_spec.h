// The training job that train runs and verify proves: a file, with what the command line says on
// top.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "rpc/job.h"

namespace toroid {

// --set, --mesh, --layout, --threads, --compute, --device and --on-pool, which the verb has.
// InvalidArgument if the job does not train.
absl::StatusOr<JobSpec> TrainingSpec(const Arguments& arguments, const std::string& path);

// The wish as ParseMesh reads it, whose errors propose a mesh that fits.
absl::StatusOr<MeshShape> MeshHere(const MeshWish& wish, int64_t world_size);

// What the job asks of its pod number `pod` of so many, which was started by hand: by that number
// pod_mesh names it. InvalidArgument if pod_mesh has a name that is no pod's number.
absl::StatusOr<MeshWish> MeshOfPod(const Placement& placement, int64_t pod, int64_t pods);

}  // namespace toroid
